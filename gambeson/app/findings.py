"""What the terminal shows of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from gambeson.app.show import budget, interval, new_table, out, print_table, short, stamp

if TYPE_CHECKING:
    from gambeson.diagnosis import Regions
    from gambeson.evaluation import Report

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


def eps(record: Mapping[str, Any]) -> None:
    """The table of `diagnose eps`, from its record, and what to think of it."""
    from gambeson.evaluation import Interval

    where = f"checkpoint {record['checkpoint']} (step {record['step']}), {record['data']} {record['split']}"
    own = f"the run's budget is {record['budget']['norm']} {short(record['budget']['eps'])}"
    out.print(f"{escape(record['run'])}, {where}, {record['norm']}, n = {record['n']}; {own}", soft_wrap=True)
    minimal = record["minimal"]
    table = new_table("eps", f"{record['attack']}, % [95 %]", *(("deepfool, %", "only deepfool") if minimal else ()))
    for number, point in enumerate(record["points"]):
        budget = point["eps"]
        cells = [interval(Interval(**{key: value for key, value in point.items() if key != "eps"}))]
        if minimal:
            cells += [f"{100 * minimal['points'][number]['value']:.1f}", str(minimal["only_deepfool"][number])]
        table.add_row("clean" if budget == 0 else short(budget), *cells)
    print_table(table)
    if minimal and minimal["moved"]:
        ends = [f"{minimal[key]:.4g}" for key in ("lower_quartile", "median", "upper_quartile")]
        out.print(
            f"DeepFool moved {minimal['moved']} images (median norm {ends[1]}, quartiles {ends[0]} and {ends[2]});"
            f" {minimal['wrong']} are wrong as they are, of {minimal['not_found']} the class did not change",
            soft_wrap=True,
        )
    note = "an image that fell at a smaller budget counts as fallen at every larger one"
    if minimal:
        note += f"; only deepfool: images that {record['attack']} left standing there and DeepFool did not"
    out.print(note, style="dim", soft_wrap=True)
    stamp(record.get("selection"))
    if record["failed"]:
        out.print(
            f"[bold red]NaN or infinite pixels were returned {record['failed']} times[/bold red]; the clean images were"
            " judged. The model's gradient is broken: this curve means little.",
            soft_wrap=True,
        )
    if record["warning"]:
        out.print(f"[bold]note[/bold]: {record['warning']}", soft_wrap=True)


def line(record: Mapping[str, Any]) -> None:
    """The table of an interpolation, from its record; between two runs it says first which they are."""
    from gambeson.evaluation import Interval

    if "runs" in record:
        of = zip(record["runs"], record["checkpoints"], record["steps"], strict=True)
        ends = [f"{run}, checkpoint {name} (step {step})" for run, name, step in of]
        out.print(escape(f"alpha 0: {ends[0]}; alpha 1: {ends[1]}"), soft_wrap=True)
        statistics = record["reestimate_bn"]
        how = f"; between them BatchNorm re-estimated from {statistics:,} training images" if statistics else ""
        n = record["points"][0]["clean"]["n"]
        out.print(escape(f"{record['data']} {record['split']}, n = {n}{how}"), soft_wrap=True)
    table = new_table("alpha", "clean, % [95 %]", "pgd-10, % [95 %]", "")
    for point in record["points"]:
        cells = [interval(Interval(**point[key])) for key in ("clean", "robust")]
        table.add_row(f"{point['alpha']:g}", *cells, "chosen" if point["alpha"] == record["chosen"] else "")
    print_table(table)
    out.print(
        f"{record['split']}, interpolating {record['entries']}; chosen: the highest clean accuracy with pgd-10 not more"
        f" than {100 * record['tolerance']:g} points below alpha 0; of equals the higher pgd-10, then the smaller"
        " alpha",
        style="dim",
        soft_wrap=True,
    )
    if record["split"] == "test":
        out.print("[bold]selected on test[/bold]: the chosen point's numbers are optimistic", soft_wrap=True)
    for run, selection in zip(record.get("runs", ()), record.get("selection", ()), strict=True):
        stamp(selection, run)


def finetuned(reports: Mapping[str, Report], alpha: float, selection: Mapping[str, Any]) -> None:
    """The table of the base model, the fine-tuned one and the interpolated one on the test set."""
    from gambeson.evaluation import mcnemar

    first = reports["base"]
    out.print(f"\naccuracy on the test set, {budget(first)}")
    table = new_table("weights", *[f"{name}, % [95 %]" for name in first.outcomes])
    labels = {"base": "base", "finetuned": "fine-tuned", "final": f"final (alpha {alpha:g})"}
    for name, found in reports.items():
        table.add_row(labels[name], *[interval(found.accuracy(attack)) for attack in found.outcomes])
    print_table(table)
    for attack, before in first.outcomes.items():
        after = reports["final"].outcomes[attack]
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        p = mcnemar(gained, lost)
        verdict = "" if p < 0.05 else ", not significant"
        points = 100 * (gained - lost) / len(before)
        out.print(f"{attack}: final minus base {points:+.2f} points (McNemar p = {p:.2g}{verdict})")
    stamp(selection)


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
