"""What people read of a method: title and colour, which stand on its class, and its place among the others."""

from collections.abc import Sequence

from samtune.methods import METHODS

# Yardsticks, which are no methods: title and colour.
YARDSTICKS = {
    "truth": ("truth", "#d5d9e0"),
    "ellipse": ("inscribed ellipse", "#c4c9d2"),
    "grabcut": ("GrabCut", "#8a93a3"),
}
OTHERS = ("#CC79A7", "#009E73", "#a98600", "#0072B2", "#D55E00", "#56B4E9", "#E69F00")  # colours of what is no method


def method_order() -> list[str]:
    """Yardsticks, then methods from simple to elaborate: the order in which `METHODS` lists them."""
    return [*YARDSTICKS, *METHODS]


def label(method: str) -> str:
    """A method's name for people; of one of its outputs ("spt draft") with the output's."""
    name, _, output = method.partition(" ")
    known = {key: title for key, (title, _) in YARDSTICKS.items()}
    known |= {key: one.title for key, one in METHODS.items()}
    return f"{known[name]} {output}".strip() if name in known else method.replace("_", " ")


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the method's own; other names share `OTHERS` in order."""
    known = {name: colour for name, (_, colour) in YARDSTICKS.items()}
    known |= {name: method.colour for name, method in METHODS.items()}
    others = iter(OTHERS * (len(names) // len(OTHERS) + 1))
    return {name: known[name] if name in known else next(others) for name in names}


def in_order(names: Sequence[str]) -> list[str]:
    """Methods from simple to elaborate, other names after them as they come."""
    order = method_order()
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))
