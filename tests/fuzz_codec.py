"""Feeds the decoder documents that are nearly right: only `ConfigError` comes out.

python tests/fuzz_codec.py 1000000
"""

import sys
import time
from collections import Counter
from typing import Any

import functional_opt as fo
from mutations import Mutations
from rooms import library, parse


# Of a thousand documents, so many are texts.
TEXTS = ("json",) * 100 + ("toml",) * 100 + ("yaml",) * 100


def fuzz(count: int, seed: int) -> Counter[str]:
    """How many documents were right, how many wrong; anything else is an error."""
    registry = library()
    mutations = Mutations(registry, seed)
    found: Counter[str] = Counter()
    for _ in range(count):
        number = mutations.random.randrange(1000)
        format = TEXTS[number] if number < len(TEXTS) else None
        document = mutations.plain() if format is None else mutations.text(format)
        try:
            module = read(registry, document, format)
        except fo.ConfigError as error:
            assert error.problems and all(text for _, text in error.problems)
            found["wrong"] += 1
        except BaseException as error:
            error.add_note(f"The document, of seed {seed}: {document!r} ({format})")
            raise
        else:
            assert registry.decode(registry.encode(module)) == module, document
            found["right"] += 1
    return found


def read(registry: fo.Registry, document: Any, format: str | None) -> Any:
    if format is None:
        return registry.decode(document)
    return parse(document, format).decode(registry.kinds, None)


def main() -> None:
    count, started = int(sys.argv[1]), time.perf_counter()
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for batch in range(0, count, 10_000):
        found = fuzz(min(10_000, count - batch), seed + batch)
        took = time.perf_counter() - started
        print(f"{batch + found.total():,} documents in {took:.0f} s, {dict(found)}")


if __name__ == "__main__":
    main()
