//! Drawings as SVG text. Colours come from the page's style sheet, so that they follow light, dark and print.

use std::fmt::Write as _;

use crate::num::ratio;

/// Size of a drawing and of its margins, in its own units.
pub(super) const WIDTH: f64 = 720.0;
pub(super) const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Most points of a line: more cannot be seen.
const POINTS_MAX: usize = 400;

/// Text that is safe between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number as short as it can be without misleading.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{:.1}M", value / 1e6)
    } else if size >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else if size >= 100.0 || (value - value.round()).abs() < 1e-9 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// One axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) log: bool,
}

impl Axis {
    /// From 0, or logarithmic where the values are worlds apart.
    pub(super) fn over(values: impl Iterator<Item = f64> + Clone, may_log: bool) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min).min(most);
        if may_log && most > 30.0 * least && least > 0.0 {
            return Self { from: least, to: most * 1.05, log: true };
        }
        Self { from: 0.0, to: if most > 0.0 { most * 1.03 } else { 1.0 }, log: false }
    }

    /// Where a value stands, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        if self.log {
            let value = value.max(self.from);
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            ratio(value - self.from, self.to - self.from)
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let mut ticks = Vec::new();
            let mut decade = 10f64.powf(self.from.log10().floor());
            while decade <= self.to {
                ticks.extend(
                    [1.0, 2.0, 5.0].map(|step| step * decade).into_iter().filter(|v| *v >= self.from && *v <= self.to),
                );
                decade *= 10.0;
            }
            return ticks;
        }
        let rough = (self.to - self.from) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let mut ticks = Vec::new();
        let mut value = self.from;
        while value <= self.to * (1.0 + 1e-9) && ticks.len() < 20 {
            ticks.push(value);
            value += step;
        }
        ticks
    }
}

/// How a line looks: its class in the style sheet.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) class: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Filled down to the axis.
    pub(super) filled: bool,
    /// Holds its value until the next point.
    pub(super) steps: bool,
}

/// A drawing with two axes.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: (Axis, &'a str),
    pub(super) y: (Axis, &'a str),
    pub(super) lines: Vec<Line>,
    /// Areas between two lines of the same x, by class.
    pub(super) bands: Vec<(String, Band)>,
}

/// `(x, low, high)`.
pub(super) type Band = Vec<(f64, f64, f64)>;

impl Chart<'_> {
    fn at(&self, point: (f64, f64)) -> (f64, f64) {
        let (x, y) = (self.x.0.place(point.0), self.y.0.place(point.1));
        (LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM))
    }

    /// As SVG.
    pub(super) fn draw(&self) -> String {
        let title = escape(self.title);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\n"
        );
        self.draw_axes(&mut svg);
        for (class, points) in &self.bands {
            let there = points.iter().map(|(x, low, _)| self.at((*x, *low)));
            let back = points.iter().rev().map(|(x, _, high)| self.at((*x, *high)));
            let path: Vec<String> = there.chain(back).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polygon class=\"area {class}\" points=\"{}\"/>", path.join(" "));
        }
        for line in &self.lines {
            self.draw_line(&mut svg, line);
        }
        svg + "</svg>\n"
    }

    fn draw_axes(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in self.x.0.ticks() {
            let (x, _) = self.at((tick, self.y.0.from));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" \
                 y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 15.0,
                number(tick)
            );
        }
        for tick in self.y.0.ticks() {
            let (_, y) = self.at((self.x.0.from, tick));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text x=\"{}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                number(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">{}</text><text class=\"name\" x=\"14\" \
             y=\"{}\" transform=\"rotate(-90 14 {})\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 6.0,
            escape(self.x.1),
            HEIGHT / 2.0 - 10.0,
            HEIGHT / 2.0 - 10.0,
            escape(self.y.1)
        );
    }

    fn draw_line(&self, svg: &mut String, line: &Line) {
        let step = line.points.len().div_ceil(POINTS_MAX).max(1);
        let last = line.points.len().saturating_sub(1);
        let kept = line.points.iter().enumerate().filter(|(at, _)| at % step == 0 || *at == last).map(|(_, p)| *p);
        let mut path = String::new();
        let mut before: Option<(f64, f64)> = None;
        for point in kept {
            let (x, y) = self.at(point);
            let _ = match before {
                None => write!(path, "M{x:.1} {y:.1}"),
                Some(_) if line.steps => write!(path, "H{x:.1}V{y:.1}"),
                Some(_) => write!(path, "L{x:.1} {y:.1}"),
            };
            before = Some((x, y));
        }
        if path.is_empty() {
            return;
        }
        if let (true, Some(first)) = (line.filled, line.points.first()) {
            let floor = HEIGHT - BOTTOM;
            let (start, _) = self.at(*first);
            let _ = writeln!(svg, "<path class=\"area {}\" d=\"{path}V{floor}H{start:.1}Z\"/>", line.class);
        }
        let _ = writeln!(svg, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_go_logarithmic_only_for_values_worlds_apart() {
        let near = Axis::over([1.0, 10.0].into_iter(), true);
        let far = Axis::over([1.0, 1000.0].into_iter(), true);
        assert!(!near.log && far.log && !Axis::over([1.0, 1000.0].into_iter(), false).log);
        assert!((far.place(1.0)).abs() < 1e-9 && far.place(1000.0) < 1.0);
        assert!(far.ticks().contains(&100.0) && near.ticks().len() >= 3);
    }

    #[test]
    fn what_a_file_is_called_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
