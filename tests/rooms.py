"""The private names that tests use, gathered room by room, each with its reason.

All other tests import public names only; `test_walls` counts the imports here.
"""

# Whether a value is within the limits of an annotation: examples of any class need it.
from functional_opt._annotations import holds as holds

# Kills, failures and races strike at moments that no public call can choose.
from functional_opt._checkpoints import (
    directory,
    files as checkpoint_files_,
    saving as saving,
    storage as storage,
)

# Commands run in the process of the tests, which saves the start of one for each, and
# colours depend on a terminal, which tests do not have.
from functional_opt._cli import colours, documents, main as command, overrides, show

# Texts and classes are drawn at random, with more mistakes than users make.
from functional_opt._codec import choices, fields, files, wires as wires, yaml_text

# What holds for every class of the library is checked for all subclasses.
from functional_opt._config import AbstractConfig as AbstractConfig

# Random programs are split as they are: few of them would come from an optimizer.
from functional_opt._slicing import canonical, slicing

# The bits of messages, and which stages share a program, are not in results.
from functional_opt._stages.derive import derive, packing

# Neither is what a compiled exchange contains, and what it moves between devices.
from functional_opt._stages.run import compiling, devices, exchange, executor, sums

# Parts of optimizers, compared with those of Optax and of the peer.
from functional_opt._transformations import (
    clipping,
    geometry as geometry,
    kronecker,
    whitening,
)


coloured = colours.coloured
library = documents.library
main = command.main
assignment = overrides.assignment
changed = overrides.changed
field_rows = show.field_rows
reachable = choices.reachable
fields_of = fields.fields_of
Document = files.Document
parse = files.parse
name_of = choices.name_of
write = files.write
clip_by_global_norm = clipping.clip_by_global_norm
Packing = packing.Packing
bases_of = choices.bases_of
choice_of = choices.choice_of
arms_of = fields.arms_of
Field = fields.Field
items_of = fields.items_of
on_mesh = devices.on_mesh
Exchange = exchange.Exchange
sharding_of = executor.sharding_of
root_choice = choices.root_choice
is_module = fields.is_module
balance = kronecker.balance
precondition = kronecker.precondition
batches = compiling.batches
slice_jaxpr = slicing.slice_jaxpr
Slices = slicing.Slices
scale_by_whitening = whitening.scale_by_whitening
ShardedSum = sums.ShardedSum
Canonical = canonical.Canonical
STEP = derive.STEP
checkpoint_directory = directory
checkpoint_files = checkpoint_files_
FORMATS = files.FORMATS
scalar = yaml_text.scalar
