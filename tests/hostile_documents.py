"""Documents of up to a megabyte that are made to cost time or memory.

python tests/hostile_documents.py prints, for each, the CPU time and the megabytes of
memory that `load` takes, and the error. The unit of time is what the standard library
takes on the same machine to read a harmless document of a megabyte.
"""

import json
import statistics
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import functional_opt as fo
from rooms import library


MANY = 90_000
RECIPE = {"optimizer": {"name": "adamw"}, "schedule": 1.0}


def lines(pattern: str, count: int = MANY) -> str:
    return "".join(f"{pattern}\n".replace("%", str(number)) for number in range(count))


def repeated(item: str, count: int, separator: str = ",") -> str:
    return separator.join([item] * count)


def bomb(levels: int, start: str, item: str) -> str:
    """Each level of a YAML document refers ten times to the level above."""
    texts = [f"a0: &a0 {start}"]
    for level in range(1, levels):
        inner = repeated(f"*a{level - 1}", 10)
        texts.append(f"a{level}: &a{level} {item.replace('%', inner)}")
    return "\n".join(texts)


def documents() -> dict[str, str]:
    """The texts by a name that begins with their format."""
    header = f"[{repeated('a', 31, '.')}]\n"
    table = "[optimizer]\nname = 'adamw'"
    wrong, right = "{path='('}", "{path='x'}"
    many_keys = ", ".join(f"k{number}: 1" for number in range(30_000))
    return {
        "toml keys": lines("k% = 1"),
        "toml keys of a table": f"{table}\n" + lines("k% = 1", 80_000),
        "toml keys below a deep header": header + lines("k%=1", 95_000),
        "toml headers": lines(header[:-2] + ".k%]", 9_000),
        "toml lists of tables": "[[a]]\n" * 99_000,
        "toml dots": repeated("a", 400_000, ".") + " = 1",
        "toml brackets": "a = " + "[" * 900_000,
        "toml braces": "a = " + "{a=" * 300_000,
        "toml list": f"a = [{repeated('1', 99_000)}]",
        "toml escapes": 'a = "' + "\\n" * 450_000 + '"',
        "toml quotes": 'a = """' + '""x' * 300_000,
        "toml empty lines": "\n" * 990_000,
        "toml names": f"name='sequence'\nschedules=[{repeated('{name=1}', 9_000)}]",
        "toml rules": f"name='allof'\nparts=[{repeated('{path=1}', 9_000)}]",
        "toml patterns": f"name='allof'\nparts=[{repeated(wrong, 9_000)}]",
        "toml modules": f"name='allof'\nparts=[{repeated(right, 9_000)}]",
        "toml words": f"name='allof'\nparts=[{repeated('1', 99_000)}]",
        "json brackets": "[" * 900_000,
        "json list": f"[{repeated('1', 99_000)}]",
        "json tables": f"[{repeated('{}', 99_000)}]",
        "json keys": "{" + ",".join(f'"k{number}":1' for number in range(80_000)) + "}",
        "json one key": "{" + repeated('"k":1', 99_000) + "}",
        "yaml keys": lines("k%: 1"),
        "yaml keys that are numbers": lines("%: 1"),
        "yaml list": f"[{repeated('1', 99_000, ', ')}]",
        "yaml tables": f"[{repeated('{}', 99_000, ', ')}]",
        "yaml brackets": "[" * 900_000,
        "yaml dashes": "- " * 450_000,
        "yaml question marks": "? " * 450_000,
        "yaml anchors": lines("- &a% 1", 70_000),
        "yaml lists of aliases": bomb(30, "[1]", "[%]"),
        "yaml merged aliases": bomb(30, f"{{{many_keys[:200]}1}}", "{<<: [%]}"),
        "yaml merged tables": f"a: &a {{{many_keys}}}\n"
        + lines("m%: {<<: *a}", 20_000),
        "yaml one key": "k: 1\n" * 99_000,
        "yaml wrong at the end": lines("k%: 1", 80_000) + "]",
        "yaml long pattern": f"name: where\npath: '{'a?' * 400_000}'",
        "yaml too large": "k: 1\n" * 1_000_000,
    }


def memory(key: str) -> int:
    """A line of the memory statistics of Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def seconds_of(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def main() -> None:
    registry = library()
    assert registry.decode(RECIPE)
    harmless = lines("k% = 1")
    unit = statistics.median(
        seconds_of(lambda: tomllib.loads(harmless)) for _ in range(3)
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, text in documents().items():
            path = Path(folder, f"recipe.{name[:4]}")
            path.write_text(text)
            size = len(text)
            del text
            Path("/proc/self/clear_refs").write_text("5")  # Forgets the highest use.
            before, error = memory("VmRSS"), ""
            started = time.process_time()
            try:
                registry.load(path)
            except fo.ConfigError as found:
                error = str(found).splitlines()[0].replace(str(path), path.name)
                del found
            times = (time.process_time() - started) / unit
            extra = max(0, memory("VmHWM") - before)
            result = {"name": name, "size": size, "times": round(times, 2)}
            print(json.dumps({**result, "megabytes": extra // 10**6, "error": error}))


if __name__ == "__main__":
    main()
