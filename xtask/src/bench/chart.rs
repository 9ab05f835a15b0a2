//! Charts, as SVG. Colours are those of Okabe and Ito, which people who see fewer colours can
//! tell apart.

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

const SIZE: (u32, u32) = (800, 360);
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// Of a line: more than the eye tells apart at this size.
const MOST_POINTS: usize = 400;
const FONT: &str = "sans-serif";

/// A picture of samples. `name` is the file's, without its ending.
#[derive(Debug, Clone)]
pub(super) enum Chart {
    /// The share of samples that are no larger than x, one line a series; x is logarithmic.
    Cdf {
        name: &'static str,
        title: String,
        x: &'static str,
        series: Vec<(String, Vec<f64>)>,
    },
    /// A bar for each label; `log`: of the logarithm.
    Bars {
        name: &'static str,
        title: String,
        y: &'static str,
        bars: Vec<(String, f64)>,
        log: bool,
    },
    /// Points that are joined by lines; both axes are logarithmic.
    Lines {
        name: &'static str,
        title: String,
        x: &'static str,
        y: &'static str,
        series: Vec<(String, Vec<(f64, f64)>)>,
    },
}

impl Chart {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Cdf { name, .. } | Self::Bars { name, .. } | Self::Lines { name, .. } => name,
        }
    }

    pub(super) fn title(&self) -> &str {
        match self {
            Self::Cdf { title, .. } | Self::Bars { title, .. } | Self::Lines { title, .. } => title,
        }
    }

    /// The picture; an error says which chart it was.
    pub(super) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = area
            .fill(&WHITE)
            .map_err(|error| anyhow!("{error}"))
            .and_then(|()| match self {
                Self::Cdf {
                    title, x, series, ..
                } => cdf(&area, title, x, series),
                Self::Bars {
                    title,
                    y,
                    bars,
                    log,
                    ..
                } => self::bars(&area, title, y, bars, *log),
                Self::Lines {
                    title,
                    x,
                    y,
                    series,
                    ..
                } => lines(&area, title, [x, y], series),
            })
            .and_then(|()| area.present().map_err(|error| anyhow!("{error}")));
        drop(area);
        drawn.with_context(|| format!("drawing the chart `{}`", self.name()))?;
        Ok(svg)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn cdf(area: &Area<'_>, title: &str, x: &str, series: &[(String, Vec<f64>)]) -> Result<()> {
    let series: Vec<_> = series
        .iter()
        .map(|(name, samples)| (name.clone(), cumulated(samples)))
        .collect();
    let (low, high) = range(
        series
            .iter()
            .flat_map(|(_, points)| points.iter().map(|p| p.0)),
    )?;
    let mut chart = frame(area, title)
        .build_cartesian_2d((low..high).log_scale(), 0.0..100.0)
        .map_err(|error| anyhow!("{error}"))?;
    draw_lines(&mut chart, [x, "share of samples, %"], &series, false)
}

fn lines(
    area: &Area<'_>,
    title: &str,
    axes: [&str; 2],
    series: &[(String, Vec<(f64, f64)>)],
) -> Result<()> {
    let of = |pick: fn(&(f64, f64)) -> f64| {
        range(
            series
                .iter()
                .flat_map(|(_, points)| points.iter().map(pick)),
        )
    };
    let ((left, right), (bottom, top)) = (of(|point| point.0)?, of(|point| point.1)?);
    let mut chart = frame(area, title)
        .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())
        .map_err(|error| anyhow!("{error}"))?;
    draw_lines(&mut chart, axes, series, true)
}

fn frame<'a, 'b>(area: &'a Area<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, (FONT, 18))
        .margin(12)
        // Half of the last number stands beyond the axis.
        .margin_right(30)
        .x_label_area_size(44)
        .y_label_area_size(64);
    builder
}

fn draw_lines<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    [x, y]: [&str; 2],
    series: &[(String, Vec<(f64, f64)>)],
    dots: bool,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64> + 'a,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64> + 'a,
{
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("{error}");
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()
        .map_err(failed)?;
    for ((name, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        if dots {
            let dots = points
                .iter()
                .map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()
        .map_err(failed)
}

fn bars(area: &Area<'_>, title: &str, y: &str, bars: &[(String, f64)], log: bool) -> Result<()> {
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("{error}");
    ensure!(!bars.is_empty(), "there are no bars");
    let highest = bars.iter().map(|bar| bar.1).fold(f64::MIN, f64::max);
    let (bottom, top) = if log {
        range(bars.iter().map(|bar| bar.1))?
    } else {
        (0.0, highest * 1.15)
    };
    ensure!(top > bottom && top.is_finite(), "no bar is above 0");
    let decades = (top / bottom).log10().round() as usize;
    let count = i32::try_from(bars.len()).context("too many bars")?;
    let mut builder = frame(area, title);
    // With a logarithmic axis the heights are logarithms, and so are the labels.
    let height = |value: f64| if log { value.log10() } else { value };
    let label = |value: f64| if log { 10_f64.powf(value) } else { value };
    let mut chart = builder
        .build_cartesian_2d((0..count - 1).into_segmented(), height(bottom)..height(top))
        .map_err(|error| anyhow!("{error}"))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc(y)
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .x_labels(bars.len())
        .y_labels(if log { decades + 1 } else { 8 })
        .x_label_formatter(&|at| match at {
            SegmentValue::CenterOf(at) => usize::try_from(*at)
                .ok()
                .and_then(|at| bars.get(at))
                .map_or_else(String::new, |bar| bar.0.clone()),
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        })
        .y_label_formatter(&|value| short(label(*value)))
        .draw()
        .map_err(failed)?;
    let rectangles = (0..count).zip(bars).zip(COLOURS.iter().cycle());
    chart
        .draw_series(rectangles.map(|((at, (_, value)), colour)| {
            let corners = [
                (SegmentValue::Exact(at), height(bottom)),
                (SegmentValue::Exact(at + 1), height(value.max(bottom))),
            ];
            let mut bar = Rectangle::new(corners, colour.filled());
            bar.set_margin(0, 0, 24, 24);
            bar
        }))
        .map_err(failed)?;
    chart
        .draw_series((0..count).zip(bars).map(|(at, (_, value))| {
            Text::new(
                short(*value),
                (SegmentValue::CenterOf(at), height(value.max(bottom))),
                (FONT, 13).into_font().into_text_style(area).pos(
                    plotters::style::text_anchor::Pos::new(
                        plotters::style::text_anchor::HPos::Center,
                        plotters::style::text_anchor::VPos::Bottom,
                    ),
                ),
            )
        }))
        .map_err(failed)?;
    Ok(())
}

/// Steps of a cumulated distribution, in percent.
fn cumulated(samples: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    // The last sample is always among them.
    let step = count.div_ceil(MOST_POINTS).max(1);
    (0..count)
        .filter(|at| (count - 1 - at).is_multiple_of(step))
        .map(|at| (sorted[at], (at + 1) as f64 * 100.0 / count as f64))
        .collect()
}

/// What a logarithmic axis has to show, from the power of ten below to that above. Values that
/// have no logarithm are an error.
fn range(values: impl Iterator<Item = f64>) -> Result<(f64, f64)> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    ensure!(
        low > 0.0 && low <= high && high.is_finite(),
        "a logarithmic axis cannot show values from {low} to {high}"
    );
    let (bottom, top) = (low.log10().floor(), high.log10().ceil());
    Ok((
        10_f64.powf(bottom),
        10_f64.powf(if top > bottom { top } else { bottom + 1.0 }),
    ))
}

/// Three digits that matter, and no needless zeros.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 5,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> [Chart; 4] {
        let samples: Vec<f64> = (1..=1_000).map(|n| f64::from(n) / 100.0).collect();
        let bars = vec![("ours".to_owned(), 55.0), ("theirs".to_owned(), 21_000.0)];
        let bars = |log| Chart::Bars {
            name: "bars",
            title: "Bars".into(),
            y: "ns",
            bars: bars.clone(),
            log,
        };
        [
            Chart::Cdf {
                name: "cdf",
                title: "Latency".into(),
                x: "ms",
                series: vec![("idle".into(), samples.clone()), ("storm".into(), samples)],
            },
            bars(false),
            bars(true),
            Chart::Lines {
                name: "lines",
                title: "Growth".into(),
                x: "executors",
                y: "µs",
                series: vec![("an exit".into(), vec![(1.0, 9.0), (10_000.0, 10.0)])],
            },
        ]
    }

    #[test]
    fn each_chart_is_a_picture_with_its_names() {
        for chart in one_of_each() {
            let svg = chart.svg().unwrap();
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
            assert!(svg.contains(chart.title()), "{}", chart.name());
        }
        let [cdf, bars, ..] = one_of_each();
        assert!(cdf.svg().unwrap().contains("storm"));
        assert!(bars.svg().unwrap().contains("theirs"));
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error_that_names_the_chart() {
        for samples in [vec![], vec![0.0, 1.0], vec![-1.0], vec![f64::NAN]] {
            let chart = Chart::Cdf {
                name: "latency",
                title: "Latency".into(),
                x: "ms",
                series: vec![("idle".into(), samples.clone())],
            };
            let error = format!("{:#}", chart.svg().unwrap_err());
            assert!(error.contains("`latency`"), "{samples:?}: {error}");
        }
    }

    #[test]
    fn a_distribution_ends_at_its_largest_sample() {
        assert_eq!(cumulated(&[2.0, 1.0]), [(1.0, 50.0), (2.0, 100.0)]);
        let many: Vec<f64> = (0..12_345).map(f64::from).collect();
        let points = cumulated(&many);
        assert!(points.len() <= MOST_POINTS);
        assert_eq!(points.last(), Some(&(12_344.0, 100.0)));
        assert!(cumulated(&[]).is_empty());
    }

    #[test]
    fn axes_are_whole_powers_of_ten() {
        let close = |(a, b): (f64, f64), (c, d): (f64, f64)| {
            assert!(
                (a / c - 1.0).abs() < 1e-9 && (b / d - 1.0).abs() < 1e-9,
                "{a} {b}"
            );
        };
        close(range([0.13, 7.2].into_iter()).unwrap(), (0.1, 10.0));
        close(range([10.0].into_iter()).unwrap(), (10.0, 100.0));
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (1234.5, "1234"),
            (12.0, "12"),
            (1.25, "1.25"),
            (0.1, "0.1"),
            (0.0125, "0.0125"),
            (100.0, "100"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
