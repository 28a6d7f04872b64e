"""The set of stages that hold a value."""

StageSet = frozenset[int]

NOWHERE: StageSet = frozenset()


def stages_text(stages: StageSet) -> str:
    if not stages:
        return "no stage"
    names = ", ".join(map(str, sorted(stages)))
    return f"stage {names}" if len(stages) == 1 else f"stages {names}"
