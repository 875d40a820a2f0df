"""Scripts for the built-in mix of code, chat and long documents, made of words to begin with and of Python's own library.

A model that has a chat template is asked; one without goes on with plain text. The words are those of this folder's words.json;
none of the prompts by which drafts are evaluated is among them.
"""

import ast
import json
import random
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from adaserve.distill.rows import Role, Rows, Script, Turn
from adaserve.errors import InvalidTrace
from adaserve.models.tokenizer import Tokenizer

CODE, CHAT, SUMMARY, SOURCE = "code", "chat", "summary", "source"

ANSWER_TEMPERATURES = (0.0, 0.0, 0.0, 0.7, 1.0)
"""Drawn from evenly: most requests are greedy, and a draft that knows greedy text alone is lost at the first surprise."""

_MARK = "\N{BLACK SQUARE}"
_DOCSTRING = '"""'
_MOST_SOURCE = 4000


@dataclass(frozen=True)
class Conversation:
    """What a chat template puts before a user's text, between it and the answer; ends: what closes a turn."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    ends: frozenset[int]

    @staticmethod
    def of(tokenizer: Tokenizer, eos_ids: Sequence[int]) -> "Conversation":
        """Read it off the tokenizer's template; a model without one gets plain lines."""
        ends = frozenset(eos_ids)
        if not tokenizer.has_chat_template:
            line, empty = tokenizer.encode("\n", add_special_tokens=False), tokenizer.encode("\n\n")
            return Conversation(tuple(empty), tuple(line), ends)
        text = tokenizer.decode(tokenizer.chat([{"role": "user", "content": _MARK}]), skip_special_tokens=False)
        before, _, between = text.partition(_MARK)
        return Conversation(
            tuple(tokenizer.encode(before, add_special_tokens=False)),
            tuple(tokenizer.encode(between, add_special_tokens=False)),
            ends,
        )


class Openings:
    """Writes scripts. length: of the rows, in tokens; longer documents are not begun. library: functions to be continued."""

    def __init__(
        self, tokenizer: Tokenizer, eos_ids: Sequence[int], length: int, rng: random.Random, library: Sequence[str] = ()
    ) -> None:
        self._encode = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))
        self._conversation = Conversation.of(tokenizer, eos_ids)
        self._ends = frozenset(eos_ids)
        ids = range(tokenizer.vocab_size)
        self._quotes = frozenset(i for i in ids if _DOCSTRING in tokenizer.decode([i])) | self._ends
        self._length = length
        self._rng = rng
        self._library = library
        self._words: dict[str, list[str]] = json.loads((files("adaserve.distill") / "words.json").read_text(encoding="utf-8"))

    def scripts(self, count: int, shares: Mapping[str, float]) -> list[Script]:
        """Draw `count` scripts, of every kind as many as its share asks for."""
        makers: dict[str, Callable[[], list[Turn]]] = {CODE: self._code, CHAT: self._chat, SUMMARY: self._summary}
        kinds = self._rng.choices(list(shares), weights=list(shares.values()), k=count)
        return [Script(kind, self._fill(makers[kind])) for kind in kinds]

    def _fill(self, make: Callable[[], list[Turn]]) -> tuple[Turn, ...]:
        """Enough turns for a row even if every drawn part is short."""
        turns: list[Turn] = []
        while sum(len(turn.given) + turn.most // 4 for turn in turns) < self._length:
            turns += make()
        return tuple(turns)

    def _pick(self, words: str) -> str:
        return self._rng.choice(self._words[words])

    def _answer(self, given: tuple[int, ...], most: int) -> Turn:
        # One answer in eight runs on behind its end, as load generators make models do.
        ends = self._ends if self._rng.random() < 7 / 8 else frozenset[int]()
        return Turn(given, most, self._rng.choice(ANSWER_TEMPERATURES), ends, answer=True)

    def _ask(self, words: str, most: int, answer: int) -> list[Turn]:
        conversation = self._conversation
        temperature = self._rng.uniform(0.6, 1.0)
        question = Turn((*conversation.before, *self._encode(words)), most, temperature, conversation.ends, answer=False)
        # A question that was cut off is closed by the template, one that ended by itself has its end twice in a row; both occur
        # seldom enough in what users send, and cost nothing here.
        between = conversation.between
        return [question, self._answer(between, answer)]

    def _chat(self) -> list[Turn]:
        words = self._pick("requests")
        if self._rng.random() < 0.5:
            words = f"{words} {self._pick('topics')}"
        return self._ask(words, self._rng.randint(8, 48), self._rng.randint(64, 256))

    def _summary(self) -> list[Turn]:
        longest = max(2, self._length * 2 // 3)
        most = self._rng.randint(min(96, longest // 2), longest)
        return self._ask(self._pick("summaries") + self._pick("articles"), most, self._rng.randint(48, 160))

    def _code(self) -> list[Turn]:
        most = self._rng.randint(64, 192)
        if self._library and self._rng.random() < 0.4:
            return [self._answer(self._encode(self._rng.choice(self._library) + "\n"), most)]
        name, arguments, result = f"{self._pick('verbs')}_{self._pick('nouns')}", self._pick("arguments"), self._pick("results")
        head = f"def {name}({arguments})" + (f" -> {result}:\n" if self._rng.random() < 0.7 else ":\n")
        spare = "" if self._rng.random() < 0.8 else "from typing import List\n\n\n"
        quotes = Turn(
            self._encode(f"{spare}{head}    {_DOCSTRING}"), 120, self._rng.uniform(0.5, 1.0), self._quotes, answer=False
        )
        return [quotes, self._answer(self._encode("\n"), most)]


def prompt_scripts(path: Path, tokenizer: Tokenizer, eos_ids: Sequence[int], most: int, rng: random.Random) -> list[Script]:
    """Scripts for prompts of one's own: a JSON object a line, {"prompt": "...", "chat": true}.

    Raises InvalidTrace naming file and line.
    """
    scripts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTrace(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            text, chat = str(entry["prompt"]), bool(entry.get("chat", False))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidTrace(f'{path}, line {number}: must be an object like {{"prompt": "...", "chat": true}}') from error
        given = tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)
        if given:
            temperature = rng.choice(ANSWER_TEMPERATURES)
            scripts.append(Script(path.stem, (Turn(tuple(given), most, temperature, frozenset(eos_ids), answer=True),)))
    return scripts


def library_functions(folder: Path | None = None, most: int = 4000, longest: int = 700) -> list[str]:
    """Signatures and docstrings of functions in the Python library of this machine, or in another folder."""
    found: list[str] = []
    for path in sorted((folder or Path(sysconfig.get_path("stdlib"))).glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError):
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                head = lines[node.lineno - 1 : node.body[0].end_lineno]
                opening = "\n".join(line[node.col_offset :] for line in head)
                if len(opening) <= longest:
                    found.append(opening)
    return found[:most]


def library_source(folder: Path | None = None) -> list[str]:
    """Pieces of the source of the Python library of this machine, or of another folder's files, as raw text."""
    pieces: list[str] = []
    for path in sorted((folder or Path(sysconfig.get_path("stdlib"))).glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        pieces += [text[start : start + _MOST_SOURCE] for start in range(0, len(text), _MOST_SOURCE)]
    return pieces


def raw_rows(tokenizer: Tokenizer, kind: str, texts: Sequence[str], length: int) -> Rows:
    """Rows of text that somebody else wrote: all of it is given."""
    ids = [tokenizer.encode(text)[:length] for text in texts]
    return Rows.of([(kind, tokens, [Role.GIVEN] * len(tokens)) for tokens in ids if len(tokens) > 1], length)
