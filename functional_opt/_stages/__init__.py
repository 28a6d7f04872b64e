"""Stage-local updates: a map of this package.

The path of a transformation, once, when `stage_local` is called:

    local.py            `stage_local`
    hyperparameters.py  the arrays of a recipe, which are inputs of its programs
    splitting.py        checks, derives and builds a `StageLocal`
    derive/tracing.py   Optax: the update of the whole tree, as one jaxpr
    derive/ownership.py the stages that own each leaf of the state
    ../_slicing         splits the jaxpr into programs and messages
    derive/functions.py the programs of all stages as `StageSlice`s, round by round
    derive/ties.py      sums of gradients of parameters that several stages own

The path of a gradient, in every step:

    steps.py            `StageLocal.step`: from one tree per stage to one tree per stage
    program.py          flattens the trees of a stage into one list of leaves, and back
    open_step.py        or `StageLocal.begin`: stage by stage, by run/progress.py
    run/counters.py     the rounds that this step can skip
    run/executor.py     finds the executor for the devices of the leaves, and runs it:
                        the messages and the exchange of each round, then the results
    run/sums.py         before the first round: sums of tied gradients, shard by shard
    run/exchange.py     sends the messages of a round to the devices of all stages

Where a change belongs:

    what a user calls or sees        local, steps, open_step, whole, program, axis,
                                     report
    what is passed to `stage_local`  options, partition, extra, hyperparameters
    how trees are split              trees, piece_forms, partition, states, whole_trees
    what a stage computes, and when  derive/; ../_slicing if it is not about Optax
    how it is compiled and run       run/ building, compiling, executor, progress
    which device holds which array   run/ layout, devices, exchange, sums, views,
                                     extra_args, state_sharding
    why a step failed                run/ diagnosis
    several processes                run/ processes, fingerprint

`derive/` does not depend on devices, and imports nothing from `run/`.
"""
