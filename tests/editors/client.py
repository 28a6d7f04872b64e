"""A small client of the Language Server Protocol, over the streams of a process."""

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


PATIENCE = 60.0
CAPABILITIES = {
    "textDocument": {"completion": {}, "hover": {}, "publishDiagnostics": {}},
    "workspace": {"configuration": True, "workspaceFolders": True},
}


class Editor:
    """An editor with one language server."""

    def __init__(
        self, command: list[str], folder: Path, settings: Any, format: str
    ) -> None:
        self.format = format
        self._folder = folder
        self._settings = settings
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._received: queue.Queue[Any] = queue.Queue()
        self._last = 0
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()
        root = folder.as_uri()
        self._request(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": root,
                "workspaceFolders": [{"uri": root, "name": folder.name}],
                "capabilities": CAPABILITIES,
                "initializationOptions": {"configurationSection": "evenBetterToml"},
            },
        )
        self._send(method="initialized", params={})
        self._send(
            method="workspace/didChangeConfiguration", params={"settings": settings}
        )

    def close(self) -> None:
        self._process.kill()
        self._reader.join()
        with self._process:
            pass  # Closes its streams.

    def open(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)
        document = {"languageId": name.rpartition(".")[2], "version": 1, "text": text}
        document["uri"] = self._uri(name)
        self._send(method="textDocument/didOpen", params={"textDocument": document})

    def diagnostics(self, name: str) -> list[tuple[int, int, str]]:
        """The mistakes that are marked: line and column from 0, and the text."""

        def is_marked(message: Any) -> bool:
            if message.get("method") != "textDocument/publishDiagnostics":
                return False
            parameters = message["params"]
            return parameters["uri"] == self._uri(name) and parameters["diagnostics"]

        found = self._until(is_marked)["params"]["diagnostics"]
        return [(*_place(x["range"]["start"]), x["message"]) for x in found]

    def completions(self, name: str, line: int, column: int) -> list[str]:
        found = self._at("textDocument/completion", name, line, column)
        items = found["items"] if isinstance(found, dict) else found or []
        return [item["label"] for item in items]

    def hover(self, name: str, line: int, column: int) -> str:
        return str(self._at("textDocument/hover", name, line, column))

    def _at(self, method: str, name: str, line: int, column: int) -> Any:
        position = {"line": line, "character": column}
        document = {"uri": self._uri(name)}
        return self._request(method, {"textDocument": document, "position": position})

    def _uri(self, name: str) -> str:
        return (self._folder / name).as_uri()

    def _request(self, method: str, params: Any) -> Any:
        self._last += 1
        number = self._last
        self._send(id=number, method=method, params=params)
        return self._until(lambda x: x.get("id") == number)["result"]

    def _until(self, is_wanted: Callable[[Any], Any]) -> Any:
        """The next such message. Requests of the server are answered on the way."""
        end = time.monotonic() + PATIENCE
        while True:
            message = self._received.get(timeout=max(0.0, end - time.monotonic()))
            if "method" in message and "id" in message:
                self._send(id=message["id"], result=self._answer(message))
            elif is_wanted(message):
                return message

    def _answer(self, message: Any) -> Any:
        if message["method"] != "workspace/configuration":
            return None
        sections = [item["section"] for item in message["params"]["items"]]
        return [self._settings.get(section, {}) for section in sections]

    def _send(self, **message: Any) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(
            b"Content-Length: %d\r\n\r\n" % len(content) + content
        )
        self._process.stdin.flush()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        stream, length = self._process.stdout, 0
        while line := stream.readline():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif not line.strip():
                self._received.put(json.loads(stream.read(length)))


def _place(position: Any) -> tuple[int, int]:
    return position["line"], position["character"]
