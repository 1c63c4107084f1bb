"""What holds for any input, tried with many: `--hypothesis-profile=long` tries thousands.

Losses against a reference of 600 digits, label counts against a plain counter, cards and records against themselves.
"""

from collections import Counter
from dataclasses import asdict
from tempfile import TemporaryDirectory

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from hypothesis import assume, given, note
from hypothesis import strategies as st
from test_model_card import contents_of

from hf_focal import FocalLoss, LabelDistribution, SigmoidFocalLoss, focal_loss, sigmoid_focal_loss
from hf_focal.model_card import read_model_card, write_model_card


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Of the loss and its gradient, relative: a power of gamma 50 multiplies a rounding error by 50.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
GAMMAS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 50.0]), st.floats(0, 50))
LAYOUTS = ["contiguous", "transposed", "strided", "reversed"]


def laid_out(tensor, layout):
    """The same values in memory of another order."""
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "strided":
        return tensor.repeat_interleave(3, dim=-1)[..., ::3]
    if layout == "reversed":
        return tensor.flip(0).clone(memory_format=torch.contiguous_format).flip(0)
    return tensor


@st.composite
def logits(draw, most_classes=1000, rows=3):
    """A few rows of up to a thousand classes, from nearly equal to all but sure."""
    num_classes = draw(st.one_of(st.integers(1, 8), st.integers(1, most_classes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([1e-3, 1.0, 5.0, 20.0, 80.0]))
    values = torch.randn(rows, num_classes, generator=generator, dtype=torch.float64) * spread
    dtype = draw(st.sampled_from(DTYPES))
    values = values.to(dtype) + torch.tensor(draw(st.sampled_from([0.0, 100.0, -100.0])), dtype=dtype)
    return laid_out(values, draw(st.sampled_from(LAYOUTS)))


def of_600_digits(function):
    def wrapped(*args):
        with mpmath.workdps(600):
            return function(*args)

    return wrapped


@of_600_digits
def softmax_reference(row, target, gamma, weight):
    """Loss of a row and its gradient."""
    exps = [mpmath.exp(mpmath.mpf(value)) for value in row]
    total = mpmath.fsum(exps)
    p, others = exps[target] / total, mpmath.fsum(exps[:target] + exps[target + 1 :]) / total
    log_p, gamma = mpmath.log(p), mpmath.mpf(gamma)
    focusing = others**gamma  # 0^0 is 1
    of_log_p = -weight * (focusing - (gamma * p * others ** (gamma - 1) * log_p if gamma and others else 0))
    gradient = [of_log_p * ((k == target) - value / total) for k, value in enumerate(exps)]
    return float(-weight * focusing * log_p), [float(value) for value in gradient]


@of_600_digits
def sigmoid_reference(logit, target, gamma, weight):
    p = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
    p_t, others = (p, 1 - p) if target else (1 - p, p)
    gamma, log_p = mpmath.mpf(gamma), mpmath.log(p_t)
    focusing = others**gamma
    of_log_p = -weight * (focusing - (gamma * p_t * others ** (gamma - 1) * log_p if gamma else 0))
    return float(-weight * focusing * log_p), float(of_log_p * others * (1 if target else -1))


def assert_close(found, expected, dtype, scale=0.0, times=1.0):
    """Relative to each value, or for gradients, which cancel, to `scale`; below the smallest normal number all is 0."""
    tiny = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny
    expected = torch.tensor(expected, dtype=torch.float64)
    allowed = times * TOLERANCE[dtype] * expected.abs().clamp_min(scale) + 4 * tiny
    error = (found.double() - expected).abs()
    assert (error <= allowed).all(), f"off by {error.max():.3g} of {expected.abs().max():.3g}"


class TestLosses:
    @given(logits(), GAMMAS, st.floats(0.01, 100), st.data())
    def test_softmax(self, input, gamma, weight, data):
        num_classes, dtype = input.shape[1], input.dtype
        target = torch.tensor([data.draw(st.integers(0, num_classes - 1)) for _ in input])
        alpha = torch.full((num_classes,), weight, dtype=torch.float64)
        leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        losses = focal_loss(leaf, target, gamma=gamma, alpha=alpha, reduction="none")
        expected, gradients = zip(
            *(softmax_reference(row, k, gamma, weight) for row, k in zip(input.double().tolist(), target.tolist()))
        )
        assert_close(losses, expected, dtype)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all()
        if dtype in (torch.float64, torch.float32):
            for found, right in zip(gradient, gradients):
                assert_close(found, right, dtype, scale=max(map(abs, right)))

    @given(logits(most_classes=30), GAMMAS, st.floats(0.01, 1), st.data())
    def test_sigmoid(self, input, gamma, weight, data):
        target = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=input.numel(), max_size=input.numel())))
        target = target.view(input.shape)
        pair = torch.full((2, input.shape[1]), weight, dtype=torch.float64)
        leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        losses = sigmoid_focal_loss(leaf, target.to(input.dtype), gamma=gamma, alpha=pair, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        pairs = zip(input.double().flatten().tolist(), target.flatten().tolist())
        expected, gradients = zip(*(sigmoid_reference(z, y, gamma, weight) for z, y in pairs))
        assert_close(losses.flatten(), expected, input.dtype)
        if input.dtype in (torch.float64, torch.float32):
            # Of a wrong answer p_t counts gamma times, of which float32 keeps what it has beside 1 - p_t.
            assert_close(gradient.flatten(), gradients, input.dtype, times=1 + gamma / 10)

    @given(logits(most_classes=12), st.floats(0, 8), st.booleans())
    def test_vmap_is_the_batch(self, input, gamma, sigmoid):
        loss = (SigmoidFocalLoss if sigmoid else FocalLoss)(gamma=gamma, reduction="sum")
        target = (input > input.mean()).to(input.dtype) if sigmoid else input.argmin(1)
        single = torch.func.vmap(lambda row, y: loss(row[None], y[None]))(input, target)
        assert single.sum() == pytest.approx(loss(input, target).item(), rel=1e-5)
        of_each = torch.func.vmap(torch.func.grad(lambda row, y: loss(row[None], y[None])))(input, target)
        leaf = input.detach().clone().requires_grad_()
        (whole,) = torch.autograd.grad(loss(leaf, target), leaf)
        assert torch.allclose(of_each.double(), whole.double(), rtol=1e-2 if whole.dtype.itemsize == 2 else 1e-5)

    @given(st.integers(2, 6), st.floats(0, 6), st.sampled_from([0.1, 1.0, 4.0]), st.booleans(), st.integers(0, 99))
    def test_double_backward(self, num_classes, gamma, spread, sigmoid, seed):
        assume(gamma == 0 or gamma > 0.05)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(3, num_classes, generator=generator, dtype=torch.float64) * spread
        v = torch.randn(3, num_classes, generator=generator, dtype=torch.float64)
        target = torch.randint(
            2 if sigmoid else num_classes, (3, num_classes) if sigmoid else (3,), generator=generator
        )

        def plain(z):
            if sigmoid:
                log_p = torch.nn.functional.logsigmoid(torch.where(target == 1, z, -z))
            else:
                log_p = z.log_softmax(1).gather(1, target[:, None])
            return ((-log_p.expm1()) ** gamma * -log_p).sum()

        loss = sigmoid_focal_loss if sigmoid else focal_loss
        labels = target.double() if sigmoid else target

        def product(function):
            leaf = z.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
            return torch.autograd.grad((gradient * v).sum(), leaf)[0]

        found = product(lambda leaf: loss(leaf, labels, gamma=gamma, reduction="sum"))
        expected = product(plain)
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-12 + 1e-9 * expected.abs().max().item())


IDS = st.lists(st.integers(0, 6), min_size=1, max_size=40)


class TestLabelSources:
    """The same labels in any container are counted the same."""

    @given(IDS, st.sampled_from([np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint16]))
    def test_ids(self, ids, dtype):
        expected = [Counter(ids)[k] for k in range(7)]
        array, names = np.array(ids, dtype), [f"c{k}" for k in range(7)]
        table = Dataset.from_dict({"label": ids})
        sources = [
            ids,
            array,
            array[::-1][::-1],
            torch.from_numpy(array.astype(np.int64)),
            pd.Series(ids, index=range(5, 5 + len(ids))),
            pd.DataFrame({"label": ids}),
            table,
            table.select(range(len(ids))),
            table.cast(Features({"label": ClassLabel(names=names)})),
            table.to_iterable_dataset(),
            table.with_format("numpy"),
        ]
        for source in sources:
            note(type(source).__name__)
            found = LabelDistribution.from_dataset(source, num_labels=7)
            assert found.counts.tolist() == expected and found.negatives is None

    @given(st.lists(st.text(max_size=5), min_size=1, max_size=30))
    def test_strings(self, labels):
        names = sorted({*labels})
        expected = [Counter(labels)[name] for name in names]
        for source in (
            labels,
            np.array(labels, dtype=object),
            pd.Series(labels),
            Dataset.from_dict({"label": labels}),
        ):
            found = LabelDistribution.from_dataset(source)
            assert found.counts.tolist() == expected and found.names == names

    @given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=20))
    def test_rows_of_0_and_1(self, rows):
        array = np.array(rows)
        sources = [rows, array, torch.tensor(rows), Dataset.from_dict({"labels": rows}), array.astype(np.float32)]
        sources += [Dataset.from_dict({"labels": rows}).to_iterable_dataset()]
        for source in sources:
            found = LabelDistribution.from_dataset(source, multi_label=True)
            assert found.counts.tolist() == array.sum(0).tolist()
            assert found.negatives.tolist() == (1 - array).sum(0).tolist()


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=20)
VALUES = st.one_of(TEXTS, st.integers(-(10**9), 10**9), st.floats(-1e6, 1e6), st.booleans(), st.none())


@st.composite
def card_contents(draw):
    names = draw(st.lists(TEXTS, min_size=3, max_size=3, unique=True))
    scores = st.lists(st.floats(0, 1), min_size=3, max_size=3)
    texts = {name: draw(TEXTS) for name in ("model_name", "dataset_name", "dataset_config", "dataset_fingerprint")}
    return contents_of(
        **texts,
        label_names=names,
        metrics={"accuracy": draw(scores), "f1_macro": draw(scores)},
        per_class={name: {"f1": draw(scores)} for name in names},
        command=["python", *draw(st.lists(TEXTS, max_size=4))],
        limits=draw(st.lists(TEXTS, max_size=2)),
        hyperparameters=draw(st.dictionaries(TEXTS, VALUES, max_size=3)),
        hardware=draw(TEXTS),
        base_model=draw(st.one_of(st.none(), TEXTS)),
        versions=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
    )


@pytest.mark.usefixtures("without_drawing")
class TestCards:
    @given(card_contents())
    def test_any_text_in_any_field_comes_back(self, contents):
        with TemporaryDirectory() as folder:
            assert asdict(read_model_card(write_model_card(folder, contents))) == asdict(contents)

    @given(card_contents(), st.data())
    def test_any_edit_of_a_generated_line_is_refused(self, contents, data):
        with TemporaryDirectory() as folder:
            path = write_model_card(folder, contents)
            card = path.read_bytes().decode()
            start, end = card.index("\n---\n", 3) + 5, card.index("```json hf_focal")
            lines = card[start:end].split("\n")
            generated = [k for k, line in enumerate(lines) if line.strip() and not line.startswith("![")]
            pictures = next((k for k, line in enumerate(lines) if line == "## Pictures"), len(lines))
            after = next((k for k in generated if k > pictures and lines[k].startswith("## ")), len(lines))
            k = data.draw(st.sampled_from([k for k in generated if not pictures <= k < after]))
            at = data.draw(st.integers(0, len(lines[k])))
            kind = data.draw(st.sampled_from(["insert", "replace", "delete", "remove the line", "repeat the line"]))
            letter = data.draw(st.sampled_from("0129.xX|<`-#*_ \u200b\u202e"))
            line = lines[k]
            edited = {
                "insert": line[:at] + letter + line[at:],
                "replace": line[:at] + letter + line[at + 1 :],
                "delete": line[:at] + line[at + 1 :],
            }.get(kind)
            # A sentence more at the end of a section is what an author may add.
            assume(edited.rstrip(" ") != line if edited is not None else kind[2] == "m" or line[0] in "|#`")
            changed = {"remove the line": [], "repeat the line": [line, line]}.get(kind, [edited])
            text = "\n".join([*lines[:k], *changed, *lines[k + 1 :]])
            note(f"{line!r} -> {changed!r}")
            path.write_bytes((card[:start] + text + card[end:]).encode())
            with pytest.raises(ValueError):
                read_model_card(path)

    @given(card_contents(), st.data())
    def test_any_edit_of_the_metadata_is_refused_or_means_the_same(self, contents, data):
        with TemporaryDirectory() as folder:
            path = write_model_card(folder, contents)
            card = path.read_bytes().decode()
            end = card.index("\n---\n", 3)
            before = yaml.safe_load(card[4:end])
            at = data.draw(st.integers(4, end - 1))
            letter = data.draw(st.sampled_from("0159aZ.-_:"))
            text = card[:at] + letter + card[at + data.draw(st.integers(0, 1)) :]
            path.write_bytes(text.encode())
            try:
                read_model_card(path)
            except ValueError:
                return
            after = yaml.safe_load(text[4 : text.index("\n---\n", 3)])
            note(f"{before} -> {after}")
            added = {"tags": before["tags"]} if {*before["tags"]} <= {*map(str, after.get("tags", []))} else {}
            assert before.items() <= (after | added).items()

    @given(card_contents(), st.data())
    def test_any_edit_of_the_record_is_refused_or_means_the_same(self, contents, data):
        with TemporaryDirectory() as folder:
            path = write_model_card(folder, contents)
            card = path.read_text("utf-8")
            at = data.draw(st.integers(card.index("```json hf_focal") + 17, len(card) - 6))
            letter = data.draw(st.sampled_from('0129.eE-+"{}[],: \\nt'))
            path.write_text(
                card[:at] + letter + card[at + data.draw(st.integers(0, 1)) :], encoding="utf-8", newline=""
            )
            try:
                found = read_model_card(path)
            except ValueError:
                return
            assert found == contents
