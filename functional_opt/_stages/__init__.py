"""Stage-local updates: a map of this folder.

The way of a transformation, once, when `stage_local` is called:

    local.py            `stage_local`: checks, derives, and puts a `StageLocal` together
    derive/tracing.py   Optax: the update of the whole tree, as one jaxpr
    derive/ownership.py the stages that own each leaf of the state
    ../_slicing         the jaxpr and stage sets in, programs and messages out
    derive/functions.py the programs of all stages as `StageSlice`s, round by round
    derive/ties.py      sums of gradients of parameters that several stages own

The way of a gradient, at every step:

    steps.py            `StageLocal.step`: trees of stages in, trees of stages out
    program.py          a stage's trees become one list of leaves, and back
    run/executor.py     finds the executor for where the leaves are, and runs it: all
                        messages of a round, their exchange, and at last the results
    run/sums.py         before that, sums of tied gradients, shard by shard
    run/exchange.py     a round's messages, from the devices of each stage to all

Where a change belongs:

    what a user calls or sees        local, steps, program, axis, report, partition
    how trees are split              trees, partition, extra
    what a stage computes, and when  derive/; ../_slicing if it is not about Optax
    how it is compiled and run       run/building, run/compiling, run/executor
    which device holds what          run/devices, run/exchange, run/sums
    why a step failed                run/diagnosis
    several processes                run/processes, run/fingerprint

`derive/` knows nothing of devices, and imports nothing of `run/`.
"""
