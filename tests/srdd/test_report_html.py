"""The HTML page: what it says, and how a real browser shows it."""

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import combinations

import pytest

from srdd.evidence import Evidence
from srdd.measurements import Gain
from srdd.report.html import render_html
from srdd.report.plot import plot_of
from srdd.report.series import Series, series_of
from tests.srdd.conftest import (
    BIASED,
    CLAMPED,
    DEAD,
    healthy_stack,
    layer,
    measurements,
    passing,
    replayed,
    report_of,
)

NAN, INF = math.nan, math.inf
HOSTILE = (
    "</title><script>document.body.dataset.ran='yes'</script><img src=x onerror=\"document.body.dataset.ran='yes'\">"
)


def healthy(count=12):
    return report_of(healthy_stack(count))


def faulty(count=12):
    """Three faults, layers that were not measured and numbers that are none."""
    rows = {
        "row_2": layer(2, replay=replayed(2, "mlp.down_proj")),
        "row_5": layer(5, pass_through=passing(DEAD), gain=Gain(NAN, -INF, INF, 3)),
        "row_6": layer(6, pass_through=passing(CLAMPED)),
        "row_8": layer(8, gain=None, shape=None, stability=None, pass_through=None),
        "row_9": layer(9, gain=None, shape=None, stability=None, pass_through=None, finite_output=False),
    }
    return report_of(healthy_stack(count, **rows))


def hostile():
    site = f"model.layers.0.{HOSTILE}"
    row = layer(0, site=site, replay=tuple(replace(entry, site=site) for entry in replayed(0, "x", transfer=BIASED)))
    report = report_of(measurements(row, layer(1), layer(2), notes=(HOSTILE,)))
    return replace(report, model=HOSTILE, backend=HOSTILE, environment={HOSTILE: HOSTILE, "device_name": HOSTILE})


class Page(HTMLParser):
    """The elements of a page: (tag, attributes) in order, and all its text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


# -- what it says -----------------------------------------------------------------------------------------


def test_a_healthy_report_says_so_and_how_far_from_its_limit_it_stayed():
    page = Page(render_html(report_of(healthy_stack(4, row_2=layer(2, replay=replayed(2, "mlp", violation=0.4))))))
    assert "SRDD: tiny is healthy" in page.text
    assert "The strongest evidence is host replay at layer 2: 40% of its limit." in page.text
    assert "evidence of finding" not in page.text.lower()
    assert not page.all("ol")


def test_findings_stand_in_their_order_with_evidence_and_advice():
    report = faulty()
    text = " ".join(Page(render_html(report)).text.split())
    places = [text.index(f"Layer {finding.layer}: {finding.kind.replace('_', ' ')}") for finding in report.findings]
    assert len(places) == 4
    assert places == sorted(places)
    for finding in report.findings:
        assert finding.suggestion in text
        assert finding.site in text


def test_every_statistic_of_every_layer_is_plotted_and_tabulated():
    report = faulty()
    page = Page(render_html(report))
    titles = [series.title for series in series_of(report)]
    assert {"Score", "Host replay", "Gain", "Kurtosis", "Pile-up", "Pass-through", "Run-to-run spread"} <= set(titles)
    assert len(page.all("svg")) == len(titles)
    assert all(f"{title} by layer" in page.text for title in titles)
    assert "layer 8: not measured" in page.text
    assert len(page.all("tr")) == len(report.measurements.layers) + 1 + sum(
        1 + len(f.evidence) for f in report.findings
    )


def test_environment_notes_and_cost_are_there():
    report = replace(healthy(), environment={"device_name": "x86", "torch": "2.13.0"})
    text = Page(render_html(replace(report, diagnosis=replace(report.diagnosis, notes=("gelu differs",))))).text
    assert all(part in text for part in ("2.13.0", "gelu differs", "7.00", "1.2 s", "256 MiB", "cpu-reference"))


def test_nothing_is_fetched_and_nothing_may_run():
    page = Page(render_html(faulty()))
    assert not page.all("script")
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses == ["data:,"]


def test_plots_and_tables_speak_to_those_who_do_not_see_them():
    source = render_html(faulty())
    page = Page(source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html")[0]["lang"] == "en"
    for plot in page.all("svg"):
        assert plot["role"] == "img"
        assert set(plot["aria-labelledby"].split()) <= set(ids)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert "beyond the limit: 2, 5, 6, 9." in " ".join(page.text.split())


def test_names_from_outside_are_escaped():
    page = Page(render_html(hostile()))
    assert not page.all("script")
    assert not page.all("img")
    assert HOSTILE in page.text


def test_a_name_that_no_file_can_hold_is_still_shown():
    assert "half ?" in render_html(replace(healthy(), model="half \ud800"))


def contrast(first, second):
    """WCAG 2.2's contrast ratio of two #rrggbb colours."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_in_the_light_and_in_the_dark():
    css = resources.files("srdd.report").joinpath("page/page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", css)]
    assert len(schemes) == 2
    grounds = {"text": ("page", "card", "bad-soft", "good-soft", "look-soft"), "soft": ("page", "card")}
    grounds |= {"bad": ("card", "bad-soft"), "good": ("good-soft",), "look": ("card", "look-soft")}
    for colours in schemes:
        for ink, papers in grounds.items():
            assert all(contrast(colours[ink], colours[paper]) >= 4.5 for paper in papers), ink


# -- series and plots -------------------------------------------------------------------------------------


def test_a_probe_that_the_page_does_not_know_is_plotted_under_its_own_name(monkeypatch):
    monkeypatch.setattr("srdd.report.series.weigh", lambda *_: [Evidence("new_probe", 2.0, 1.0)])
    series = {entry.name: entry for entry in series_of(healthy(3))}
    assert series["new_probe"].title == "New probe"
    assert series["new_probe"].values == (2.0, 2.0, 2.0)
    assert series["new_probe"].accuses


def made(values, upper=NAN, lower=NAN):
    return Series("x", "X", "", tuple(values), (upper,) * len(values), (lower,) * len(values), accuses=True)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0],
        [NAN, NAN, NAN],
        [INF, -INF, NAN],
        [1e-300, 1e300, -1e300],
        [5e-324, 1.0, 1.7976931348623157e308],
        [-3.0, 4.0, 2.5],
        [7.0],
        [1.0] * 200,
    ],
)
@pytest.mark.parametrize(("upper", "lower"), [(NAN, NAN), (1.0, NAN), (6.0, -6.0), (1e9, NAN)])
def test_every_mark_lies_inside_the_frame_whatever_the_numbers(values, upper, lower):
    plot = plot_of(made(values, upper, lower), range(len(values)))
    assert len(plot.marks) == len(values)
    for mark, value in zip(plot.marks, values, strict=True):
        assert mark.missing == math.isnan(value)
        assert mark.missing or 22 - 1e-6 <= mark.y <= 156 + 1e-6
        assert 46 <= mark.x <= 352
    assert plot.y_ticks
    assert "nan" not in plot.line + plot.limits


def test_higher_values_are_drawn_higher_over_twelve_decades_and_both_signs():
    values = [-1e5, -10.0, -1.0, 0.0, 1.0, 10.0, 1e5, 1e7]
    heights = [mark.y for mark in plot_of(made(values), range(8)).marks]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 8


def test_a_huge_value_leaves_the_limit_and_what_is_near_it_apart():
    plot = plot_of(made([0.3, 127.0, 9.7e8, 0.0], upper=1.0), range(4))
    low, high, _, zero = (mark.y for mark in plot.marks)
    limit = float(plot.limits.split()[1])
    assert high + 5 < limit < low - 2 < zero - 2


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [1.0, 1e6], [0.0], [-2.0, 2.0], [1e-9, 3e-9], [9e307, -9e307]])
def test_labels_of_an_axis_keep_their_distance(values):
    plot = plot_of(made(values, upper=2.0), range(len(values)))
    for first, second in combinations(plot.y_ticks, 2):
        assert abs(first.at - second.at) >= 11
        assert first.label != second.label


@pytest.mark.parametrize("sign", [1, -1])
def test_a_logarithmic_axis_of_few_decades_is_labelled_within_them(sign):
    plot = plot_of(made([sign * value for value in (0.37, 0.5, 7.9)]), range(3))
    assert {f"{sign}", f"{5 * sign}"} <= {tick.label for tick in plot.y_ticks}


def test_layers_beyond_a_limit_are_marked_and_the_furthest_are_named():
    values = [0.0] * 80
    values[40], values[41], values[70] = 5.0, 9.0, 3.0
    plot = plot_of(made(values, upper=1.0), range(80))
    assert [mark.words for mark in plot.marks if mark.beyond] == [
        "layer 40: 5 (limit 1)",
        "layer 41: 9 (limit 1)",
        "layer 70: 3 (limit 1)",
    ]
    assert [flag.label for flag in plot.flags] == ["41", "70"]
    assert "beyond the limit: 40, 41, 70" in plot.summary


# -- in a browser -----------------------------------------------------------------------------------------

# Shows the page in a frame of the wanted width, because a window cannot be as narrow as a phone, and measures it there.
HARNESS = """<!doctype html><meta name="color-scheme" content="light dark"><body>
<iframe style="border: 0; height: 2000px; width: {width}px" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document, overlaps = [];
  for (const plot of page.querySelectorAll("svg")) {{
    const name = plot.querySelector("title").textContent, frame = plot.getBoundingClientRect();
    const boxes = [...plot.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([word, box], at) => {{
      const inside = box.left > frame.left - 1 && box.right < frame.right + 1;
      if (!inside || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        overlaps.push(`${{name}}: ${{word}} leaves the plot`);
      for (const [other, next] of boxes.slice(at + 1)) {{
        const across = box.left < next.right && next.left < box.right;
        if (across && box.top + 1 < next.bottom - 1 && next.top + 1 < box.bottom - 1)
          overlaps.push(`${{name}}: ${{word}} over ${{other}}`);
      }}
    }});
  }}
  const cut = [...page.querySelectorAll("h1, h3, p, dd, dt, figcaption")]
    .filter(part => part.scrollWidth > part.clientWidth + 1).map(part => part.textContent.trim().slice(0, 60));
  document.body.dataset.result = JSON.stringify({{
    overlaps, cut, ran: page.body.dataset.ran || "", title: page.title,
    plots: page.querySelectorAll("svg").length, width: view.innerWidth,
    overflow: page.documentElement.scrollWidth - view.innerWidth,
    ground: view.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script></body>"""


@pytest.fixture(scope="module")
def chromium():
    """Path of a Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed: the page is not shown in a browser here")
    return found


@pytest.fixture
def shown(chromium, tmp_path):
    """Show a page in the browser and return what is measured there."""

    def show(page, width, *flags):
        file = tmp_path / "harness.html"
        file.write_text(HARNESS.format(width=width, page=html.escape(page)), encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options = ["--window-size=1400,2100", "--dump-dom", *flags, file.as_uri()]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=90, check=True)
        return json.loads(html.unescape(re.search(r'data-result="([^"]*)"', done.stdout)[1]))

    return show


@pytest.mark.parametrize(
    ("make", "count"), [(healthy, 12), (faulty, 12), (faulty, 80)], ids=["healthy", "faulty", "80 layers"]
)
@pytest.mark.parametrize("width", [1280, 360], ids=["desk", "phone"])
def test_in_a_browser_no_text_covers_another_and_nothing_is_wider_than_the_window(shown, make, count, width):
    found = shown(render_html(make(count)), width)
    assert found["width"] == width
    assert found["plots"] >= 13
    assert found["overlaps"] == []
    assert found["cut"] == []
    assert found["overflow"] <= 0


def test_in_a_browser_a_hostile_name_stays_text(shown):
    bare = re.sub(r"<meta http-equiv.*?>", "", render_html(hostile()))  # without the policy that stops all scripts
    found = shown(bare, 360)
    assert found["ran"] == ""
    assert found["title"].startswith("SRDD: ")
    assert "script" in found["title"]
    assert found["overflow"] <= 0


def test_in_a_browser_the_page_follows_a_dark_screen(shown):
    page = render_html(healthy(3))
    assert shown(page, 1280)["ground"] == "rgb(247, 247, 245)"
    assert shown(page, 1280, "--blink-settings=preferredColorScheme=0")["ground"] == "rgb(22, 23, 26)"
