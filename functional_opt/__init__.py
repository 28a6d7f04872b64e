from . import testing as testing
from ._stages.errors import CrossStageError as CrossStageError
from ._stages.local import stage_local as stage_local, StageLocal as StageLocal
from ._stages.partition import partition as partition, StagePartition as StagePartition
from ._stages.program import StageProgram as StageProgram
