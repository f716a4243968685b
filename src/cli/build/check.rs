//! `hephy build --check`: what the build checks find, as BuildKit prints it.

use std::fmt::Write as _;

use base64::Engine as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::build::CheckReport;
use crate::dockerfile::Span;

/// How many lines around a finding are shown.
const AROUND: usize = 2;

/// Whether to check instead of building.
#[derive(Debug, Clone, Args)]
pub struct CheckArguments {
    /// Check the Dockerfile and build nothing; the exit status is 1 if anything is found
    #[arg(long)]
    pub check: bool,
    /// How findings are printed
    #[arg(long, value_enum, default_value = "text", requires = "check")]
    pub format: CheckFormat,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For people.
    Text,
    /// As BuildKit's `result.json`.
    Json,
}

/// Whether nothing was found.
pub(super) fn is_clean(report: &CheckReport) -> bool {
    report.outcome.as_ref().is_ok_and(|found| found.findings.is_empty())
}

/// The report in a format.
pub(super) fn render(report: &CheckReport, format: CheckFormat) -> String {
    match format {
        CheckFormat::Text => text(report),
        CheckFormat::Json => format!("{:#}", value(report)),
    }
}

fn text(report: &CheckReport) -> String {
    let mut out = String::new();
    let source = String::from_utf8_lossy(&report.text);
    let lines: Vec<&str> = source.lines().collect();
    // Writing to a string does not fail.
    let _written = match &report.outcome {
        Err((line, problem)) => {
            writeln!(out, "ERROR: {problem}\n{}", shown(&report.file, &lines, *line, *line))
        }
        Ok(found) => {
            let _written = match found.findings.len() {
                0 => writeln!(out, "Check complete, no warnings found."),
                1 => writeln!(out, "Check complete, 1 warning has been found!"),
                count => writeln!(out, "Check complete, {count} warnings have been found!"),
            };
            found.findings.iter().try_for_each(|finding| {
                let Span { start, end_line } = finding.span;
                let shown = shown(&report.file, &lines, start.line, end_line);
                let (name, url) = (finding.rule.name(), finding.rule.url());
                writeln!(out, "\nWARNING: {name} - {url}\n{}\n{shown}", finding.detail)
            })
        }
    };
    out.trim_end().to_owned()
}

/// Lines with those around them.
fn shown(file: &str, lines: &[&str], first: usize, last: usize) -> String {
    let mut out = format!("{file}:{first}\n--------------------\n");
    let from = first.saturating_sub(AROUND).max(1);
    for number in from..=(last + AROUND).min(lines.len()) {
        let Some(line) = lines.get(number - 1) else { continue };
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        // Whatever the file holds, a terminal is only shown text.
        let line: String = line.chars().filter(|c| *c == '\t' || !c.is_control()).take(500).collect();
        let line = format!("{number:4} | {mark} {line}");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str("--------------------");
    out
}

fn value(report: &CheckReport) -> Value {
    let location =
        |first: usize, last: usize| json!({"ranges": [{"start": {"line": first}, "end": {"line": last}}]});
    let data = base64::engine::general_purpose::STANDARD.encode(&report.text);
    let source = json!({"filename": report.file, "language": "Dockerfile", "data": data});
    let mut value = json!({"warnings": [], "sources": [source]});
    match &report.outcome {
        Ok(found) => {
            let one = |finding: &crate::dockerfile::Finding| {
                json!({
                    "ruleName": finding.rule.name(),
                    "description": finding.rule.description(),
                    "url": finding.rule.url(),
                    "detail": finding.detail,
                    "location": location(finding.span.start.line, finding.span.end_line),
                })
            };
            value["warnings"] = found.findings.iter().map(one).collect();
        }
        Err((line, problem)) => {
            value["buildError"] = json!({"message": problem, "location": location(*line, *line)});
        }
    }
    value
}
