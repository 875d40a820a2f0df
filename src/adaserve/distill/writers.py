"""Writers: a target plays scripts, and rows of its own text come out.

EngineWriter     through our engine, for any model and device that it serves
BatchWriter      through the training module, thousands of rows in lockstep; for GPUs, where it is many times faster

In lockstep all rows have the same length at any time, so no row needs padding, and no attention a mask: a row that is at a
given token takes it, every other one takes what the target drew.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.distill.networks import Network, logits
from adaserve.distill.rows import Role, Rows, Script
from adaserve.request import SamplingParams

if TYPE_CHECKING:
    from adaserve.llm import LLM

Progress = Callable[[str], None]


_LOOK_EVERY = 32
"""Steps between looks at whether all rows are over: each look waits for the device."""


class Writer(Protocol):
    """Plays scripts."""

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """Write a row of at most `length` tokens for every script."""
        ...


class EngineWriter:
    """Plays scripts through the engine: the next turn of every row is one batch of requests."""

    def __init__(self, llm: "LLM", seed: int) -> None:
        self._llm = llm
        self._seed = seed

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """See Writer."""
        tokens: list[list[int]] = [[] for _ in scripts]
        roles: list[list[int]] = [[] for _ in scripts]
        for turn in range(max(len(script.turns) for script in scripts)):
            open_rows = []
            for row, script in enumerate(scripts):
                if turn < len(script.turns) and len(tokens[row]) < length:
                    tokens[row] += script.turns[turn].given
                    roles[row] += [Role.GIVEN] * len(script.turns[turn].given)
                    if script.turns[turn].most and len(tokens[row]) < length:
                        open_rows.append(row)
            played = [scripts[row].turns[turn] for row in open_rows]
            params = [
                SamplingParams(
                    max_tokens=min(part.most, length - len(tokens[row])),
                    temperature=part.temperature,
                    stop_token_ids=tuple(sorted(part.ends)),
                    min_tokens=min(part.least, part.most, length - len(tokens[row])),
                    ignore_eos=True,
                    seed=(self._seed << 40) + (turn << 32) + row,
                )
                for row, part in zip(open_rows, played, strict=True)
            ]
            results = self._llm.generate([tokens[row] for row in open_rows], params) if open_rows else []
            for row, part, result in zip(open_rows, played, results, strict=True):
                drawn = result.outputs[0].token_ids
                tokens[row] += drawn
                roles[row] += [Role.ANSWER if part.answer else Role.GIVEN] * len(drawn)
        return Rows.of([(s.kind, t, r) for s, t, r in zip(scripts, tokens, roles, strict=True)], length)


class BatchWriter:
    """Plays scripts through the training module, as many at a time as fill `tokens` together."""

    def __init__(self, target: Network, tokens: int, seed: int, progress: Progress) -> None:
        self._target = target
        self._tokens = tokens
        self._generator = torch.Generator(target.device).manual_seed(seed)
        self._progress = progress

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """See Writer."""
        parts = []
        batches = math.ceil(len(scripts) / max(1, self._tokens // length))
        rows = math.ceil(len(scripts) / max(1, batches))  # batches of one size: a small last one would take as long
        for start in range(0, len(scripts), rows):
            parts.append(self._play(scripts[start : start + rows], length))
            self._progress(f"wrote {min(start + rows, len(scripts))} of {len(scripts)} rows of {length} tokens")
        return Rows.join(parts)

    @torch.inference_mode()
    def _play(self, scripts: Sequence[Script], length: int) -> Rows:
        device = self._target.device
        state = _Stage(scripts, device)
        step = _Lockstep(self._target, len(scripts), length)
        token = torch.zeros(len(scripts), length, dtype=torch.int32, device=device)  # [n, T]
        role = torch.zeros(len(scripts), length, dtype=torch.uint8, device=device)  # [n, T]
        drawn = torch.zeros(len(scripts), dtype=torch.long, device=device)  # [n]; every script begins with given tokens
        for at in range(length):
            if at:
                scores = step(token[:, at - 1].long())  # [n, V]
                drawn = _draw(state.forbid(scores), state.temperature(), self._generator)
            token[:, at], role[:, at] = state.take(drawn)
            if at % _LOOK_EVERY == 0 and state.is_over():
                break
        return Rows(token.cpu(), role.cpu(), tuple(script.kind for script in scripts))


class _Stage:
    """Where every row stands in its script, as tensors [n]: the turn, and how many of its tokens have been played."""

    def __init__(self, scripts: Sequence[Script], device: torch.device) -> None:
        turns = max(len(script.turns) for script in scripts) + 1  # a last one in which nothing happens
        ends = list({turn.ends for script in scripts for turn in script.turns})

        def table(values: Callable[[Script], list[float]], fill: float, dtype: torch.dtype) -> Tensor:
            rows = [values(script) + [fill] * (turns - len(script.turns)) for script in scripts]
            return torch.tensor(rows, dtype=dtype, device=device)  # [n, turns]

        self._count = table(lambda s: [len(t.given) for t in s.turns], 0, torch.long)
        self._most = table(lambda s: [t.most for t in s.turns], 1 << 40, torch.long)
        self._least = table(lambda s: [t.least for t in s.turns], 0, torch.long)
        self._temperature = table(lambda s: [t.temperature for t in s.turns], 0.0, torch.float32)
        self._role = table(lambda s: [Role.ANSWER if t.answer else Role.GIVEN for t in s.turns], Role.PADDING, torch.uint8)
        self._ends_of = table(lambda s: [ends.index(t.ends) for t in s.turns], 0, torch.long)
        given = [token for script in scripts for turn in script.turns for token in turn.given]
        self._given = torch.tensor([*given, 0], dtype=torch.long, device=device)  # [all given tokens + 1]
        self._start = self._count.flatten().cumsum(0).view_as(self._count) - self._count  # [n, turns]
        last = max((token for stop in ends for token in stop), default=0)
        self._is_end = torch.zeros(len(ends), last + 2, dtype=torch.bool, device=device)  # [sets, ids]; the last: every other id
        for number, stop in enumerate(ends):
            self._is_end[number, list(stop)] = True
        delayed = {token for script in scripts for turn in script.turns if turn.least for token in turn.ends}
        self._delayed = torch.tensor(sorted(delayed), dtype=torch.long, device=device)  # [E]: ends that may come too early
        self._turn = torch.zeros(len(scripts), dtype=torch.long, device=device)  # [n]
        self._played = torch.zeros_like(self._turn)  # [n]
        self._skip_empty()

    def temperature(self) -> Tensor:
        """Of every row's turn.  # [n]"""
        return self._now(self._temperature)

    def forbid(self, logits: Tensor) -> Tensor:
        """Take the ends out of what can be drawn where their time has not come. logits [n, V] are changed in place."""
        if len(self._delayed):
            early = self._played < self._now(self._count) + self._now(self._least)  # [n]
            ends = self._is_end[self._now(self._ends_of)][:, self._delayed] & early[:, None]  # [n, E]
            logits[:, self._delayed] = logits[:, self._delayed].masked_fill(ends, -torch.inf)
        return logits

    def take(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Play one token of every row, the given one or the drawn one; returns tokens and roles [n]."""
        count = self._now(self._count)
        is_given = self._played < count
        place = (self._now(self._start) + self._played).clamp(max=len(self._given) - 1)
        role = self._now(self._role)
        over = self._turn == self._count.shape[1] - 1
        token = torch.where(is_given, self._given[place], drawn).masked_fill(role == Role.PADDING, 0)
        ended = ~is_given & self._is_end[self._now(self._ends_of), token.clamp(max=self._is_end.shape[1] - 1)]
        self._played += 1
        done = (ended | (self._played >= count + self._now(self._most))) & ~over
        role = torch.where(is_given & (role != Role.PADDING), int(Role.GIVEN), role)
        self._turn += done
        self._played.masked_fill_(done, 0)
        return token.int(), role

    def is_over(self) -> bool:
        """Whether all rows have come to the end of their scripts."""
        return bool((self._turn == self._count.shape[1] - 1).all())

    def _now(self, table: Tensor) -> Tensor:
        return table.gather(1, self._turn[:, None])[:, 0]

    def _skip_empty(self) -> None:
        """Refuse what cannot be played."""
        inner = self._count[:, :-1] + self._most[:, :-1]  # [n, turns - 1]
        if bool((inner == 0).any()) or bool((self._count[:, 0] == 0).any()):
            raise ValueError("a script must begin with a given token, and no turn may be empty")


class _Lockstep:
    """One decoding step for rows that all have the same length, over keys and values in plain tensors."""

    def __init__(self, target: Network, rows: int, length: int) -> None:
        config, self._target, self._at = target.config, target, 0
        shape = (config.layers, rows, config.kv_heads, length, config.head_dim)
        dtype = target.embedding.dtype
        self._keys = torch.empty(shape, dtype=dtype, device=target.device)  # [layers, n, KH, T, hd]
        self._values = torch.empty(shape, dtype=dtype, device=target.device)  # [layers, n, KH, T, hd]
        self._attend = _attention_on(target.device)

    def __call__(self, token: Tensor) -> Tensor:
        """Read a token [n] of every row; returns the logits after it [n, V]."""
        body, config, at = self._target.body, self._target.config, self._at
        rows = token.shape[0]
        residual = functional.embedding(token, self._target.embedding)  # [n, hidden]
        position = torch.full((1, 1), at, dtype=torch.long, device=token.device)
        cos, sin = (angle[0, 0] for angle in body.rotary_emb(residual[:1, None], position))  # [hd] each
        for layer, keys, values in zip(body.layers, self._keys, self._values, strict=True):
            attention = layer.self_attn
            x = layer.input_layernorm(residual)
            q = attention.q_proj(x).view(rows, config.heads, config.head_dim)
            k = attention.k_proj(x).view(rows, config.kv_heads, config.head_dim)
            if config.qk_norm:
                q, k = attention.q_norm(q), attention.k_norm(k)
            keys[:, :, at] = _rotate(k, cos, sin)
            values[:, :, at] = attention.v_proj(x).view(rows, config.kv_heads, config.head_dim)
            attended = self._attend(_rotate(q, cos, sin), keys, values, at + 1)  # [n, H, hd]
            residual = residual + attention.o_proj(attended.reshape(rows, -1))
            residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
        self._at += 1
        return logits(body.norm(residual), self._target.head)


def attend(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Attend from the only query of every head, [n, H, hd], to the first `length` keys of [n, KH, T, hd].  # [n, H, hd]

    The query heads of a KV group stand as so many rows of one head, so that attention reads every key once.
    """
    rows, heads, width = query.shape
    grouped = query.view(rows, keys.shape[1], -1, width)  # [n, KH, H / KH, hd]
    attended = functional.scaled_dot_product_attention(grouped, keys[:, :, :length], values[:, :, :length])
    return attended.reshape(rows, heads, width)


def _attention_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    if device.type != "cuda":
        return attend
    from adaserve.distill import triton_attention

    return triton_attention.attend


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _draw(logits: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """One token of every row [n, V] -> [n], by the Gumbel trick: at temperature 0 the noise vanishes."""
    scores = logits.float()
    if bool((temperature > 0).any()):
        noise = torch.empty_like(scores).exponential_(generator=generator).log_()  # minus a Gumbel variable
        scores = scores.addcmul(noise, temperature[:, None], value=-1)
    return scores.argmax(-1)
