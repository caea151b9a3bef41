"""Arguments with a wrong name or position raise a TypeError that says what to write, in Linen and in NNX."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import grujax
import grujax.nnx as gnnx
from grujax.core.keywords import FOREIGN, INSTEAD, _arguments, explained
from grujax.training import TrainConfig

X, KEY, RNGS = jnp.ones((2, 3, 4)), jax.random.key(0), nnx.Rngs(0)
LINEN = {
    "GRUCell": (grujax.GRUCell, ()),
    "GRU": (grujax.GRU, ()),
    "GRUEncoder": (grujax.GRUEncoder, ()),
    "GRUModel": (grujax.GRUModel, (2,)),
}
NNX = {name: (getattr(gnnx, name), sizes) for name, (_, sizes) in LINEN.items()}


def calls(name):
    """Functions that call the Linen and the NNX module with the given keywords."""
    args = (X[:, 0, :3], X[:, 0]) if name == "GRUCell" else (X,)
    (linen, sizes), (of_nnx, _) = LINEN[name], NNX[name]
    module = of_nnx(4, 3, *sizes, rngs=RNGS)
    return lambda **words: linen(3, *sizes).init(KEY, *args, **words), lambda **words: module(*args, **words)


@pytest.mark.parametrize(
    "name, written",
    {"GRU": "", "GRUCell": "", "GRUEncoder": "", "GRUModel": ", output_size=5"}.items(),
)
def test_only_the_sizes_go_by_position(name, written):
    sizes = (10, 20, 5) if written else (10, 20)
    instead = rf"write {name}\(hidden_size=20{written}\): the number of input features is read from x"
    with pytest.raises(TypeError, match=rf"{name} takes only hidden_size.* by position; {instead}"):
        LINEN[name][0](*sizes)
    with pytest.raises(TypeError, match=rf"{name} takes only input_size, hidden_size.* by position"):
        NNX[name][0](*sizes, 2, rngs=RNGS)
    if name != "GRUCell":
        with pytest.raises(TypeError, match=r"Pass other fields by name: num_layers=2\.$"):
            LINEN[name][0](*sizes)
    assert NNX[name][0](*sizes, rngs=RNGS).hidden_size == LINEN[name][0](*sizes[1:]).hidden_size == 20


def test_where_nothing_goes_by_position_a_field_is_named():
    class Wrapper:
        def __init__(self, **fields):
            del fields

    with pytest.raises(TypeError, match=r"^Wrapper takes no argument by position; write Wrapper\(hidden_size=9, "):
        explained(Wrapper, TrainConfig)(9)


CONSTRUCTORS = {
    "features": "write hidden_size=",
    "units": "write hidden_size=",
    "nonlinearity": "write activation=",
    "use_bias": "write bias=",
    "batch_first": "with time_major=True it is (time, batch, features)",
    "go_backwards": "write reverse=",
    "return_sequences": "with pooling=None",
    "training": "deterministic=not training in the call",
    "lengths": "lengths= belongs to the call",
    "seq_lengths": "lengths= belongs to the call",
    "hiden_size": "write hidden_size=",
    "num_classes": "a GRUModel has a head, of output_size= units",
    "ressets": "resets= belongs to the call",
    "colour": "it takes",
}
CALLS = {
    "seq_lengths": "write lengths=",
    "initial_carry": "write h0=",
    "initial_state": "write h0=",
    "hx": "write h0=",
    "train": "write deterministic=not train in the call",
    "batch_first": "with time_major=True it is (time, batch, features)",
    "reverse": "reverse= belongs to the constructor",
    "lenghts": "write lengths=",
    "colour": "it takes x, h0, lengths, mask, resets",
}


@pytest.mark.parametrize("word", CONSTRUCTORS)
def test_a_constructor_names_our_word(word):
    for of, sizes in ((grujax.GRU, ()), (gnnx.GRU, (4,))):
        options = {"rngs": RNGS} if sizes else {}
        with pytest.raises(TypeError) as error:
            of(*sizes, hidden_size=3, **options, **{word: 1})
        assert f"GRU takes no {word}= here" in str(error.value) and CONSTRUCTORS[word] in str(error.value)


@pytest.mark.parametrize("name", ["GRU", "GRUEncoder", "GRUModel"])
def test_a_call_names_our_word(name):
    for call in calls(name):
        for word, what in (CALLS | {"return_carry": "(output, h_last)" if name == "GRU" else "return_state="}).items():
            with pytest.raises(TypeError) as error:
                call(**{word: 1})
            assert f"{name} takes no {word}= here" in str(error.value) and what in str(error.value)


def test_a_subclass_names_our_word_and_one_with_a_constructor_of_its_own_is_left_alone():
    class Mine(grujax.GRU):
        width: int = 2

    class MineToo(gnnx.GRU):
        pass

    class Other(gnnx.GRU):
        def __init__(self, *sizes, colour, **fields):
            self.colour = colour
            super().__init__(*sizes, **fields)

    assert Mine(3, width=4).width == 4
    for name, make in (
        ("Mine", lambda **word: Mine(3, **word)),
        ("MineToo", lambda **w: MineToo(4, 3, rngs=RNGS, **w)),
    ):
        with pytest.raises(TypeError, match=f"^{name} takes no num_layer= here: write num_layers=."):
            make(num_layer=2)
    assert Other(4, 3, colour="red", rngs=RNGS).colour == "red"
    with pytest.raises(TypeError, match=r"^Other takes no hiden_size= here: write hidden_size=\."):
        Other(4, hiden_size=3, colour="red", rngs=RNGS)


def test_what_one_face_has_and_the_other_has_not():
    with pytest.raises(TypeError, match="no input_size= here: the number of input features is read from x"):
        grujax.GRU(input_size=10, hidden_size=20)
    with pytest.raises(TypeError, match="no in_features= here: write input_size="):
        gnnx.GRU(in_features=10, hidden_size=20, rngs=RNGS)
    for call in calls("GRUCell"):
        with pytest.raises(TypeError, match="GRUCell takes no h0= here: it takes carry, x, weights, state_mask"):
            call(h0=X)


def test_the_table_says_words_that_are_ours_and_explains_none_of_them():
    classes = [cls for face in (LINEN, NNX) for cls, _ in face.values()]
    ours = {word for cls in classes for word in (*_arguments(cls.__init__), *_arguments(cls.__call__))}
    ours |= {*_arguments(TrainConfig), "random_state"}  # random_state belongs to the estimators
    theirs = {word for words in FOREIGN.values() for word in words}
    assert set(FOREIGN) <= ours
    elsewhere = {"initial_state", "carry", "seed", "random_state"}  # only in layers, cells, training or estimators
    assert theirs & ours == elsewhere
    assert not set(INSTEAD) & theirs


def test_flags_given_as_numbers_are_refused_with_the_comparison():
    with pytest.raises(grujax.InputError, match=r"resets: expected dtype bool.*resets != 0 or resets > 0\.5"):
        grujax.GRU(3).init(KEY, X, resets=jnp.zeros((2, 3)))


def test_a_hook_of_a_subclass_stays():
    seen = []

    class Base(grujax.GRU):
        def __init_subclass__(cls, tag=None, **options):
            super().__init_subclass__(**options)
            seen.append((cls.__name__, tag))

    class Sub(Base, tag="x"):
        pass

    assert seen == [("Sub", "x")] and Sub(3).hidden_size == 3
    with pytest.raises(TypeError, match="write hidden_size="):
        Sub(units=3)
