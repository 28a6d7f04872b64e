"""Saves in the background, one at a time."""

import logging
import threading
from collections.abc import Callable
from typing import Any


logger = logging.getLogger("functional_opt")


class Background:
    """A thread that finishes a save while training goes on.

    It is not a daemon thread: a program waits for it at exit. Its error is logged at
    once, and raised by the next `wait`.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a save begins
        self.save: Any = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, save: Any, work: Callable[[], None]) -> None:
        """Starts a save, after the last one has finished."""
        self.save = save
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def wait(self) -> None:
        """Waits for the current save, and raises its error if it failed."""
        with self.lock:
            if self._thread is not None:
                self._thread.join()
            self._thread = self.save = None
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error
            logger.error("A save in the background has failed: %s", error)
