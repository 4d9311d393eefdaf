from emte.sim.fingerprint import fingerprint

FACTOR = 2


class Base:
    def grow(self, n):
        return n * FACTOR


class Derived(Base):
    LIMITS = frozenset({"a", "b"})

    @property
    def grown(self):
        return self.grow(1)


def use():
    return Derived().grown


def test_same_code():
    assert fingerprint(use) == fingerprint(use)


def test_what_is_reached_through_names_and_bases(monkeypatch):
    before = fingerprint(use)
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.FACTOR", 3)
        assert fingerprint(use) != before
    with monkeypatch.context() as patch:
        patch.setattr(Base, "grow", lambda self, n: n + FACTOR)
        assert fingerprint(use) != before
    with monkeypatch.context() as patch:
        patch.setattr(Derived, "LIMITS", frozenset({"a"}))
        assert fingerprint(use) != before
    assert fingerprint(use) == before


def test_defaults_and_closures():
    def make(n, default=1):
        def inner(m=default):
            return n + m

        return inner

    prints = {fingerprint(make(n, default)) for n in (1, 2) for default in (1, 2)}
    assert len(prints) == 4
    assert fingerprint(make(1)) == fingerprint(make(1))
