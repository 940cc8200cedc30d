"""Stop sequences: the text of an answer ends before the first of them that is complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class StopCutter:
    """Cuts the answer before a stop sequence in it, the one that is complete first; thoughts pass as they are.

    Text that may be the beginning of a sequence is held back until that is decided, and so is white space at the end.

    Args:
        sequences: non-empty texts.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequences)
        self._held = ""
        #: Whether a sequence was found, so that the answer is over.
        self.found = False

    def read(self, texts: Iterable[tuple[bool, str]], *, over: bool = False) -> list[tuple[bool, str]]:
        """What may be shown of ``texts`` (whether it is thought, text), and with ``over`` all that was held back."""
        shown: list[tuple[bool, str]] = []
        for thinking, text in texts:
            if self.found:
                break
            if thinking:
                shown += [(False, self._held), (True, text)]
                self._held = ""
            else:
                shown.append((False, self._take(text)))
        if over and not self.found:
            shown.append((False, self._held))
            self._held = ""
        return [(thinking, text) for thinking, text in shown if text]

    def _take(self, text: str) -> str:
        text = self._held + text
        places = [(at + len(stop), at) for stop in self._sequences if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]].rstrip()
        begun = max(
            (n for stop in self._sequences for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )
        safe = len(text[: len(text) - begun].rstrip()) if self._sequences else len(text)
        self._held = text[safe:]
        return text[:safe]
