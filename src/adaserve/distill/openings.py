"""Scripts for the built-in mix of code, chat and long documents, made of words to begin with and of Python's own library.

A model that has a chat template is asked; one without goes on with plain text. The words are those of this folder's words.json;
none of the prompts by which drafts are evaluated is among them.
"""

import ast
import json
import random
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from adaserve.distill.rows import Role, Rows, Script, Turn
from adaserve.errors import InvalidTrace
from adaserve.models.tokenizer import Tokenizer

CODE, CHAT, SUMMARY, SOURCE = "code", "chat", "summary", "source"

ANSWER_TEMPERATURES = (0.0, 0.0, 0.0, 0.7, 1.0)
"""Drawn from evenly: most requests are greedy, and a draft that knows greedy text alone is lost at the first surprise."""

_BARE = 0.4
"""Share of questions that come without the chat template."""

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
    """Writes scripts. library: functions to be continued."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int], rng: random.Random, library: Sequence[str] = ()) -> None:
        self._encode = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self._conversation = Conversation.of(tokenizer, eos_ids)
        self._ends = frozenset(eos_ids)
        ids = range(tokenizer.vocab_size)
        self._quotes = frozenset(i for i in ids if _DOCSTRING in tokenizer.decode([i])) | self._ends
        self._rng = rng
        self._library = library
        self._words: dict[str, list[str]] = json.loads((files("adaserve.distill") / "words.json").read_text(encoding="utf-8"))

    def scripts(self, kind: str, count: int, length: int) -> list[Script]:
        """Draw `count` scripts of a kind, each with turns enough for a row of `length` tokens."""
        make: Callable[[int], list[Turn]] = {CODE: self._code, CHAT: self._chat, SUMMARY: self._summary}[kind]
        return [Script(kind, self._fill(make, length)) for _ in range(count)]

    def _fill(self, make: Callable[[int], list[Turn]], length: int) -> tuple[Turn, ...]:
        """Enough turns for a row even if every drawn part is short."""
        turns: list[Turn] = []
        while sum(len(turn.given) + turn.most // 4 for turn in turns) < length:
            turns += make(length)
        return tuple(turns)

    def _pick(self, words: str) -> str:
        return self._rng.choice(self._words[words])

    def _answer(self, given: tuple[int, ...], most: int, runs_on: float) -> Turn:
        ends = frozenset[int]() if self._rng.random() < runs_on else self._ends
        return Turn(given, most, self._rng.choice(ANSWER_TEMPERATURES), ends, answer=True)

    def _ask(self, words: str, most: int, least: int, answer: int) -> list[Turn]:
        """A question that begins with some words, or with none, and its answer: with the chat template around, or bare."""
        conversation, temperature = self._conversation, self._rng.uniform(0.6, 1.0)
        given = self._encode(words)
        # Load generators send bare text and let models run on behind their ends; so do few others.
        if given and self._rng.random() < _BARE:
            question = Turn(given, most, temperature, conversation.ends, answer=False, least=least)
            return [question, self._answer((), 2 * answer, 0.8)]
        # A question that was cut off is closed by the template, one that ended by itself has its end twice in a row; both occur
        # seldom enough in what users send, and cost nothing here.
        question = Turn((*conversation.before, *given), most, temperature, conversation.ends, answer=False, least=least)
        return [question, self._answer(conversation.between, answer, 1 / 8)]

    def _chat(self, length: int) -> list[Turn]:
        form = self._rng.random()
        # Without a word to begin with, a chat model asks what it was taught to expect.
        words = (
            "" if form < 0.3 else self._pick("requests") if form < 0.65 else f"{self._pick('requests')} {self._pick('topics')}"
        )
        return self._ask(words, self._rng.randint(8, 64), 0, self._rng.randint(64, 256))

    def _summary(self, length: int) -> list[Turn]:
        longest = max(4, length * 2 // 3)
        most = self._rng.randint(min(96, longest // 2), longest)
        return self._ask(self._pick("summaries") + self._pick("articles"), most, most // 2, self._rng.randint(48, 160))

    def _code(self, length: int) -> list[Turn]:
        most = self._rng.randint(64, 256)
        if self._library and self._rng.random() < 0.3:
            return [self._answer(self._encode(self._rng.choice(self._library) + "\n"), most, 0.5)]
        name, arguments, result = f"{self._pick('verbs')}_{self._pick('nouns')}", self._pick("arguments"), self._pick("results")
        head = f"def {name}({arguments})" + (f" -> {result}:\n" if self._rng.random() < 0.7 else ":\n")
        spare = "" if self._rng.random() < 0.8 else "from typing import List\n\n\n"
        opening = self._encode(f"{spare}{head}    {_DOCSTRING}")
        quotes = Turn(opening, 160, self._rng.uniform(0.5, 1.0), self._quotes, answer=False)
        return [quotes, self._answer(self._encode("\n"), most, 0.5)]


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
