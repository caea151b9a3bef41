"""Every mutation still matches the code. `python tests/mutations.py` runs them all, which takes half an hour."""

import pytest
from mutations import MUTATIONS, ROOT, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_changes_one_place_and_names_tests_that_exist(mutation):
    assert mutated(mutation) != (ROOT / "grujax" / mutation.file).read_text()
    if mutation.file.endswith(".py"):
        compile(mutated(mutation), mutation.file, "exec")
    assert all((ROOT / "tests" / name.partition("::")[0]).exists() for name in mutation.tests.split())


def test_a_text_that_is_gone_or_twice_is_an_error():
    for original in ("no such text", "import"):
        with pytest.raises(LookupError, match="expected once"):
            mutated(MUTATIONS[0]._replace(original=original))


def test_there_are_forty_of_them():
    assert len(MUTATIONS) >= 40
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
