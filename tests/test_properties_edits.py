"""The algebra of weight edits on drawn changes of a tiny model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import stable
from tiny import tiny_chat

from safeedit.edits import LowRank, WeightEdit
from safeedit.edits.dense import as_dense

EPS = 2**-23  # of float32


@pytest.fixture(scope="module")
def chat():
    return tiny_chat()


def names(chat) -> list[str]:
    return [chat.weight_name(layer) for layer in range(chat.n_layers)]


@st.composite
def edits(draw, kinds=("low rank", "dense")):
    """An edit of some blocks: a recipe that `make` turns into tensors."""
    return draw(
        st.dictionaries(
            st.integers(0, 2),
            st.tuples(st.sampled_from(kinds), st.integers(1, 4), st.integers(0, 10**6)),
            min_size=1,
            max_size=3,
        )
    )


def make(chat, recipe) -> WeightEdit:
    deltas: dict = {}
    for layer, (kind, rank, seed) in recipe.items():
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape, generator=generator):
            return torch.randn(*shape, generator=generator)

        d, f = chat.d_model, chat.d_ff
        deltas[names(chat)[layer]] = (
            LowRank(drawn(d, rank), drawn(f, rank)) if kind != "dense" else drawn(d, f)
        )
    return WeightEdit(deltas, {"recipe": str(recipe)})


def matrices(edit: WeightEdit) -> dict[str, torch.Tensor]:
    """Each change as a plain matrix, float64."""
    return {
        name: d.U.double() @ d.V.double().mT if isinstance(d, LowRank) else d.double()
        for name, d in edit.deltas.items()
    }


def close(one: WeightEdit, two: WeightEdit) -> bool:
    """Equal but for the rounding of float32, the longest sums being of 8 products."""
    a, b = matrices(one), matrices(two)
    if a.keys() != b.keys():
        return False
    return all(
        float((a[n] - b[n]).abs().max())
        <= 32 * EPS * max(1.0, float(a[n].abs().max()), float(b[n].abs().max()))
        for n in a
    )


@stable(25)
@given(edits(), st.booleans())
def test_applied_and_reverted_bit_for_bit(chat, recipe, fails):
    before = [p.detach().clone() for p in chat.model.parameters()]
    said = chat.generate(["a boat"], 3)
    try:
        with make(chat, recipe).applied(chat):
            chat.generate(["a boat"], 1)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass  # the point of the test: it comes back all the same
    assert all(map(torch.equal, chat.model.parameters(), before))
    assert chat.generate(["a boat"], 3) == said


@stable(50)
@given(edits(), edits(), edits())
def test_addition_commutes_and_associates(chat, one, two, three):
    a, b, c = (make(chat, recipe) for recipe in (one, two, three))
    assert close(a + b, b + a)
    assert close((a + b) + c, a + (b + c))
    whole, parts = matrices(a + b), (matrices(a), matrices(b))
    for name, matrix in whole.items():
        expected = sum(part[name] for part in parts if name in part)
        assert torch.allclose(matrix, expected, rtol=1e-5, atol=1e-4)


@stable(50)
@given(edits(), edits(), st.integers(-4, 4), st.integers(-4, 4))
def test_multiples_distribute(chat, one, two, m, n):
    a, b = make(chat, one), make(chat, two)
    assert close(m * (a + b), m * a + m * b)
    assert close((m + n) * a, m * a + n * a)
    assert close(m * (n * a), (m * n) * a)
    assert close(1 * a, a) and close(a * m, m * a)
    assert float((a + -1 * a).norm()) <= 1e-3 * float(a.norm())


@stable(50)
@given(edits(), st.integers(-4, 4))
def test_the_norm_is_one(chat, recipe, m):
    edit = make(chat, recipe)
    size = float(edit.norm())
    plain = sum(float(x.square().sum()) for x in matrices(edit).values()) ** 0.5
    assert size == pytest.approx(plain, rel=1e-5)
    assert float((m * edit).norm()) == pytest.approx(abs(m) * size, rel=1e-5)
    twice = edit + edit
    assert float(twice.norm()) == pytest.approx(2 * size, rel=1e-5)


@stable(30)
@given(edits())
def test_saved_and_loaded_is_the_same(chat, tmp_path, recipe):
    edit = make(chat, recipe)
    back = WeightEdit.load(edit.save(tmp_path / "edit"), chat)
    assert back.info == edit.info and back.deltas.keys() == edit.deltas.keys()
    for name, delta in edit.deltas.items():
        other = back.deltas[name]
        assert type(other) is type(delta)
        if isinstance(delta, LowRank):
            assert torch.equal(other.U, delta.U) and torch.equal(other.V, delta.V)
        else:
            assert torch.equal(other, delta)
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]


@stable(25)
@given(edits(kinds=("low rank",)))
def test_low_rank_and_dense_compute_the_same(chat, recipe):
    edit = 0.01 * make(chat, recipe)
    batch = chat.encode(chat.render(["a boat", "explain a kite"]))
    outputs = []
    for one in (edit, as_dense(edit)):
        with torch.no_grad(), one.applied(chat):
            outputs.append(chat.model(**batch).logits)
    assert torch.allclose(*outputs, rtol=1e-3, atol=1e-3)
    assert not torch.equal(outputs[0], chat.model(**batch).logits)
