"""What the terminal shows of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from gambeson.app.show import new_table, out, print_table

if TYPE_CHECKING:
    from gambeson.diagnosis import Regions

ORIGINS = {"run": "the run's own", "option": "as asked", "default": "the default: the run has no mask from maps"}


def cam(record: Mapping[str, Any]) -> None:
    """The table of `diagnose cam`, from its record."""
    from gambeson.diagnosis.regions import budget_text

    where = f"checkpoint {record['checkpoint']} (step {record['step']}), {record['data']} {record['split']}"
    how = "closed form, one forward" if record["closed_form"] else "one backward through what follows it"
    out.print(f"{escape(record['run'])}, {where}, n = {record['n']}", soft_wrap=True)
    out.print(
        f"{record['cam']} of {escape(record['layer'])} ({how}), mask {record['mask']} ({ORIGINS[record['mask_from']]})",
        soft_wrap=True,
    )
    coloured = len(record["groups"]["all"]["channels"]) == 3
    extra = ("red, %", "green, %", "blue, %", "any channel, %") if coloured else ()
    table = new_table("images", "n", "full budget, %", "smallest", "largest", *extra, "empty maps")
    for name, group in record["groups"].items():
        if group is None:
            table.add_row(name, "0", *["-"] * (4 + len(extra)))
            continue
        full = group["full"]
        shares = [*group["channels"], group["any_channel"]] if coloured else []
        table.add_row(
            name,
            str(full["n"]),
            _spread(full),
            *[f"{100 * share:.1f}" for share in (full["min"], full["max"], *shares)],
            str(group["dead"]),
        )
    print_table(table)
    out.print(
        "full budget: share of an image's values, mean ± standard deviation over the images",
        style="dim",
        soft_wrap=True,
    )
    if record["groups"]["all"]["dead"]:
        out.print(
            f"an image with an empty map has the {record['dead_budget']} budget everywhere", style="dim", soft_wrap=True
        )
    if record["assigned"] not in (None, "own"):
        out.print(
            f"in training (assign {record['assigned']}) the masks went to other images than these", soft_wrap=True
        )
    if "budget" in record:
        budget = record["budget"]
        mean, eps, eps_low = (budget_text(budget[key]) for key in ("mean", "eps", "eps_low"))
        out.print(f"mean budget {mean} (eps {eps}, eps_low {eps_low})")


def regions(found: Regions, data: str) -> None:
    """The tables of `diagnose regions`."""
    from gambeson.diagnosis.regions import PAIRS, PUBLISHED, SETUPS, budget_text, mean_budget

    budgets = f"eps {budget_text(found.eps)}, {budget_text(found.eps_low)} in one quarter"
    uniform = budget_text(mean_budget(found.eps, found.eps_low))
    seeds = ", ".join(map(str, found.seeds))
    out.print(
        f"{escape(data)} test, n = {found.n}, attacked at Linf eps {budget_text(found.eval_eps)};"
        f" trained with {budgets}, uniform {uniform}; seeds {seeds}",
        soft_wrap=True,
    )
    table = new_table("setup", *[column for attack in found.attacks for column in (f"{attack}, %", "range")])
    for setup in SETUPS:
        cells = []
        for attack in found.attacks:
            one = found.spread(setup, attack)
            cells += [_spread(vars(one)), f"{100 * one.min:.2f} .. {100 * one.max:.2f}"]
        table.add_row(setup, *cells)
    print_table(table)
    table = new_table("difference, points [95 %]", *found.attacks)
    for setup, reference in PAIRS:
        cells = []
        for attack in found.attacks:
            by = found.difference(setup, reference, attack)
            ends = "" if by.low is None or by.high is None else f" [{100 * by.low:+.2f}, {100 * by.high:+.2f}]"
            cells.append(escape(f"{100 * by.mean:+.2f}{ends}"))
        table.add_row(f"{setup} - {reference}", *cells)
    print_table(table)
    for sentence in found.sentences():
        out.print(sentence, soft_wrap=True)
    if data == "cifar10":
        said = "; ".join(
            f"{setup} " + ", ".join(f"{attack} {100 * value:.2f}" for attack, value in values.items())
            for setup, values in PUBLISHED.items()
        )
        out.print(
            f"published (ResNet-18; epochs, seeds and evaluation budget not stated): {said}",
            style="dim",
            soft_wrap=True,
        )


def _spread(found: Mapping[str, Any]) -> str:
    std = "" if found["std"] is None else f" ± {100 * found['std']:.2f}"
    return f"{100 * found['mean']:.2f}{std}"
