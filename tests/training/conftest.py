"""A fixture that interrupts a run within an epoch."""

import pytest

from grujax.training import loop


@pytest.fixture
def ends_at(monkeypatch):
    """`ends_at(step)` sends Ctrl-C after that step, `ends_at(None)` never. The steps are taken one at a time."""
    agreed = loop.Devices.agreed
    monkeypatch.setattr(loop, "SHORT", 0)

    def prepare(step):
        def interrupted(self, number, *wants):
            if number == step:
                raise KeyboardInterrupt
            return agreed(self, number, *wants)

        monkeypatch.setattr(loop.Devices, "agreed", interrupted)

    return prepare
