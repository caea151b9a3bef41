"""Translates dates in many spellings to ISO form with attention, "Tuesday, 3rd of May 1994" to "1994-05-03".

    python examples/dates.py                       21 to 25 seconds of processor time
    python examples/dates.py --steps 2 --rows 8    a short run

Every training batch is new, and so are the dates of the final test.
"""

import argparse
import time
from calendar import day_name, month_name

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax.seq2seq import Seq2Seq, greedy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=900, help="number of training batches")
parser.add_argument("--rows", type=int, default=64, help="dates per batch")
parser.add_argument("--hidden-size", type=int, default=96, help="hidden units")
parser.add_argument("--test-rows", type=int, default=2000, help="number of dates in the final test")
parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the dates")
options = parser.parse_args()
if min(options.steps, options.rows, options.hidden_size, options.test_rows) < 1:
    parser.error("--steps, --rows, --hidden-size and --test-rows must be positive")

MONTHS, DAYS = list(month_name)[1:], list(day_name)
SPELLINGS = [
    "{day} {month} {year}",
    "{day:02} {short} {year}",
    "{nth} of {month} {year}",
    "{month} {day}, {year}",
    "{short} {nth}, {year}",
    "{weekday}, {nth} of {month} {year}",
    "{weekday}, {month} {day}, {year}",
    "{day}.{number}.{year}",
    "{day:02}.{number:02}.{year}",
    "{number}/{day}/{year}",
    "{year}/{number:02}/{day:02}",
]
PAD, START, END = range(3)
LETTERS = {c: i for i, c in enumerate(sorted(set("".join(MONTHS + DAYS) + "0123456789 .,/-ofthndrs")), start=3)}
LONGEST, WRITTEN = 40, 12  # tokens of a source; of a target, with START and END
FIRST, N_DAYS = np.datetime64("1900-01-01"), 73_049  # up to 2099


def spelled(iso: str, day_of_week: int, spelling: str) -> str:
    year, number, day = map(int, iso.split("-"))
    suffix = "th" if 10 <= day % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name = MONTHS[number - 1]
    parts = {"month": name, "short": name[:3], "weekday": DAYS[day_of_week], "nth": f"{day}{suffix}"}
    return spelling.format(year=year, number=number, day=day, **parts)


def draw(rng: np.random.Generator, n_rows: int) -> tuple[list[str], list[str]]:
    """Draws spelled dates and their ISO forms."""
    days = rng.integers(0, N_DAYS, n_rows)
    isos = [str(FIRST + day) for day in days]
    chosen = rng.integers(0, len(SPELLINGS), n_rows)
    weekdays = days % 7  # 1900-01-01 was a Monday
    return [spelled(i, d, SPELLINGS[s]) for i, d, s in zip(isos, weekdays, chosen, strict=True)], isos


def encoded(texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens (B, width), with END after each text, and their lengths."""
    tokens = np.full((len(texts), width), PAD, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text) + 1] = [LETTERS[c] for c in text] + [END]
    return tokens, np.array([len(text) + 1 for text in texts], np.int32)


def batch(rng: np.random.Generator, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws sources (B, S), their lengths, and targets (B, T) that begin with START."""
    texts, isos = draw(rng, n_rows)
    target, _ = encoded(isos, WRITTEN - 1)
    return *encoded(texts, LONGEST), np.pad(target, ((0, 0), (1, 0)), constant_values=START)


n_tokens = len(LETTERS) + 3
sizes = {"source_vocabulary": n_tokens, "target_vocabulary": n_tokens, "embedding_size": 32}
model = Seq2Seq(options.hidden_size, **sizes, bidirectional=True, merge="sum", context="luong")
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_onecycle_schedule(options.steps, 1e-2, 0.1))
)


@jax.jit
def train(variables, state, source, lengths, target):
    def loss(variables):
        logits = model.apply(variables, source, target[:, :-1], source_lengths=lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:]).mean()

    value, gradients = jax.value_and_grad(loss)(variables)
    updates, state = optimizer.update(gradients, state, variables)
    return optax.apply_updates(variables, updates), state, value


@jax.jit
def translate(variables, source, lengths):
    memory, state = model.apply(variables, source, source_lengths=lengths, method="encode")
    step = lambda state, token: model.apply(variables, memory, state, token, method="step")  # noqa: E731
    return greedy(step, state, START, end=END, max_length=WRITTEN - 1).tokens


start, rng = time.perf_counter(), np.random.default_rng(options.seed)
variables = model.init(jax.random.key(options.seed), jnp.ones((1, LONGEST), int), jnp.ones((1, WRITTEN), int))
state, value = optimizer.init(variables), np.nan
for step in range(options.steps):
    variables, state, value = train(variables, state, *batch(rng, options.rows))
    if step % max(1, options.steps // 5) == 0:
        print(f"step {step:4d}: loss {value:.5f}", flush=True)
seconds = time.perf_counter() - start

source, lengths, target = batch(np.random.default_rng(options.seed + 1000), options.test_rows)
right = (np.asarray(translate(variables, source, lengths)) == target[:, 1:]).all(1)
print(f"loss {value:.5f} after {seconds:.0f} s; {100 * right.mean():.2f}% of {len(right)} dates right")
