"""report.html, its plots and summary.json from results.json: one page without scripts that asks the network nothing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlwf.arena.report import page_rows
from anchorlwf.arena.report.claims import CLAIMS, Judged, headline, judge
from anchorlwf.arena.report.comparison import Comparison, compare_all
from anchorlwf.arena.report.front_plot import pareto_plot
from anchorlwf.arena.report.plots import curves, differences
from anchorlwf.arena.report.statistics import COSTS, MEASURES, TRADE_OFFS, Estimate, Front, TradeOff, estimates, front
from anchorlwf.arena.report.style import FAMILIES, glyph, inline, marks
from anchorlwf.arena.study_results import OURS, Study
from anchorlwf.evaluation.plotting import DARK, LIGHT, save, svg
from anchorlwf.extras import require_extra
from anchorlwf.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StudySummary", "summarize", "write_plots", "write_report"]


@dataclass(frozen=True)
class StudySummary:
    """Everything that was computed from a study; `as_dict` is summary.json."""

    study: Study
    estimates: dict[str, dict[str, dict[str, Estimate | None]]]
    """By regime, method and measure."""
    fronts: dict[str, dict[str, Front]]
    """By trade-off and regime."""
    comparisons: list[Comparison]
    judged: Judged
    headline: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: no NaN, no infinity."""
        return {
            "schema_version": 1,
            "headline": self.headline,
            "claims": {
                "on_front": [asdict(claim) for claim in self.judged.on_front],
                "loses_less": [asdict(claim) for claim in self.judged.loses_less],
            },
            "estimates": {
                regime: {
                    method: {
                        name: None if estimate is None else asdict(estimate) for name, estimate in estimates.items()
                    }
                    for method, estimates in by_method.items()
                }
                for regime, by_method in self.estimates.items()
            },
            "fronts": {
                trade_off: {regime: asdict(front) for regime, front in fronts.items()}
                for trade_off, fronts in self.fronts.items()
            },
            "comparisons": [
                {**asdict(comparison), "differs": comparison.differs, "verdict": comparison.verdict}
                for comparison in self.comparisons
            ],
        }


def summarize(results: dict[str, Any]) -> StudySummary:
    """Compute everything the report says. Raises `RecordError` for results that are not as documented."""
    study = Study.read(results)
    summed = {
        regime: {method: estimates(study, regime, method) for method in study.measured(regime)}
        for regime in study.regimes
    }
    fronts = {
        trade_off.name: {regime: front(study, regime, trade_off) for regime in study.regimes}
        for trade_off in TRADE_OFFS
    }
    judged = judge(study, fronts[TRADE_OFFS[0].name])
    return StudySummary(study, summed, fronts, compare_all(study), judged, headline(study, judged))


@dataclass(frozen=True)
class _Drawn:
    """One plot of the page: a panel of a regime."""

    figure: "Figure"
    alt: str


def _front(summary: StudySummary, trade_off: TradeOff, regimes: list[str], *, alone: bool) -> "Figure":
    return pareto_plot(
        summary.study, summary.estimates, summary.fronts[trade_off.name], trade_off, regimes, alone=alone
    )


def _draw(summary: StudySummary) -> dict[tuple[str, str], _Drawn]:
    """Every plot that has anything to show, by kind and regime."""
    study = summary.study
    drawn: dict[tuple[str, str], _Drawn] = {}
    for regime, about in study.regimes.items():
        for trade_off in TRADE_OFFS:
            if members := summary.fronts[trade_off.name][regime].members:
                titles = ", ".join(study.methods[method].title for method in members)
                alt = f"Learned against {trade_off.title}, {about.title}. On the front: {titles}"
                drawn[trade_off.name, regime] = _Drawn(_front(summary, trade_off, [regime], alone=False), alt)
        if any(comparison.regime == regime for comparison in summary.comparisons):
            alt = f"Differences to AnchorLwF, {about.title}; the table below holds the figures"
            drawn["differences", regime] = _Drawn(differences(study, summary.comparisons, regime), alt)
        figure = curves(study, regime)
        if figure is not None:
            drawn["curves", regime] = _Drawn(figure, f"Learning curves of each method, {about.title}")
    return drawn


def _save(summary: StudySummary, drawn: dict[tuple[str, str], _Drawn], folder: Path) -> list[Path]:
    """The plots as files: the fronts of all regimes side by side, the others as they are."""
    names = {trade_off.name for trade_off in TRADE_OFFS}
    figures = {f"{kind}_{regime}": plot.figure for (kind, regime), plot in drawn.items() if kind not in names}
    for trade_off in TRADE_OFFS:
        if regimes := [regime for regime in summary.study.regimes if (trade_off.name, regime) in drawn]:
            figures[trade_off.name] = _front(summary, trade_off, regimes, alone=True)
    for name, figure in figures.items():
        save(figure, folder, name)
    return [folder / f"{name}.{kind}" for name in figures for kind in ("svg", "png")]


def write_plots(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write every plot as SVG and PNG into `folder`; `pareto` is the one that stands by itself.

    Raises:
        RecordError: the results are not as documented.
        ConfigError: the extra `arena` is not installed.
        StorageError: the folder cannot be written.
    """
    require_extra("arena", "the arena's report")
    summary = summarize(results)
    return _save(summary, _draw(summary), Path(folder))


def _page(summary: StudySummary, drawn: dict[tuple[str, str], _Drawn]) -> str:
    import jinja2
    from markupsafe import Markup, escape

    def plot(kind: str, regime: str) -> Markup | str:
        panel = drawn.get((kind, regime))
        # Ids are unique in a page, and a regime may be called anything.
        name = f"{kind}-{list(study.regimes).index(regime)}"
        inlined = "" if panel is None else inline(svg(panel.figure, text=True), name, str(escape(panel.alt)))
        return Markup(inlined)  # noqa: S704 - matplotlib escapes what it writes, and `alt` is escaped

    study = summary.study
    seeds = {
        regime: {method: len(study.of(regime, method)) for method in study.measured(regime)} for regime in study.regimes
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": page_rows.visible, "written": page_rows.written}
    fewest = min((count for counts in seeds.values() for count in counts.values()), default=0)
    most = max((count for counts in seeds.values() for count in counts.values()), default=0)
    page = environment.get_template("report.html").render(
        summary=summary,
        study=study,
        ours=OURS,
        claims=CLAIMS,
        families=FAMILIES,
        trade_offs=TRADE_OFFS,
        light=LIGHT,
        dark=DARK,
        glyphs={family: glyph(family) for family in FAMILIES},
        marks=marks(study),
        plot=plot,
        tables={
            regime: page_rows.table(summary.estimates[regime], MEASURES, seeds[regime]) for regime in study.regimes
        },
        costs={regime: page_rows.table(summary.estimates[regime], COSTS, seeds[regime]) for regime in study.regimes},
        examples=lambda regime: page_rows.examples(study, regime),
        strips=lambda regime: page_rows.strips(study, regime),
        changes=page_rows.changes,
        heat=page_rows.heat,
        sweeps=page_rows.sweeps(study),
        settings=page_rows.settings(study),
        fewest=fewest,
        most=most,
        smallest_p=2.0 ** (1 - most) if most else 1.0,
    )
    # What is not from `visible` (an option's name, say) may still hold half a character, which no file can.
    return page.encode("utf-8", "replace").decode()


def write_report(results: dict[str, Any], folder: str | Path) -> Path:
    """Write report.html, summary.json and plots/ into `folder`, each file atomically.

    Args:
        results: results.json as docs/arena_results.md has it.
        folder: made if need be; files of a former report are replaced.

    Returns:
        The path of report.html, which needs none of the other files.

    Raises:
        RecordError: the results are not as documented.
        ConfigError: the extra `arena` is not installed.
        StorageError: the folder cannot be written.
    """
    require_extra("arena", "the arena's report")
    target = Path(folder)
    summary = summarize(results)
    drawn = _draw(summary)
    _save(summary, drawn, target / "plots")
    text = json.dumps(summary.as_dict(), indent=2, allow_nan=False)  # ASCII: halves of characters stay escaped
    write_atomic(target / "summary.json", text + "\n")
    write_atomic(target / "report.html", _page(summary, drawn))
    return target / "report.html"
