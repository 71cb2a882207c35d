"""Stands for a mail service on the network. Its directory shows what it has sent, and tells it to fail."""

import asyncio
import json
from pathlib import Path


class Mailer:
    """Every mail is a file in `directory`. While there is a file `down`, nobody answers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def send(self, to: str, text: str, *, idempotency_key: str) -> None:
        """Send a mail. A second one with the same key is the same mail."""
        await asyncio.to_thread(self._send, to, text, idempotency_key)

    def _send(self, to: str, text: str, idempotency_key: str) -> None:
        if (self._directory / "down").exists():
            raise ConnectionError("the mail service does not answer")
        self._directory.mkdir(exist_ok=True)
        mail = self._directory / f"{idempotency_key}.json"
        mail.write_text(json.dumps({"to": to, "text": text}) + "\n", encoding="utf-8")
