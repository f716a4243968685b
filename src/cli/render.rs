//! How tables, times and sizes look.

use std::time::Duration;

use jiff::Timestamp;

/// Lines up `rows` below `heading`, two spaces between columns, no trailing space.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading = heading.map(str::to_owned);
    for row in std::iter::once(&heading).chain(rows) {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in the largest unit that says something: `3m`, `2h`, `5d`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Elapsed time as the pusher sees it: `0.4s`, `12.0s`, `3m 20s`.
pub(crate) fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1}s", duration.as_secs_f64())
    } else {
        format!("{}m {}s", seconds / 60, seconds % 60)
    }
}

/// A size as people read it: `62 MB`.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [["hello".to_owned(), "v4".to_owned()], ["a".to_owned(), String::new()]];
        assert_eq!(table(["APP", "RELEASE"], &rows), "APP    RELEASE\nhello  v4\na\n");
    }

    #[test]
    fn times_are_short() {
        let then = Timestamp::from_second(0).unwrap();
        let now = |s| Timestamp::from_second(s).unwrap();
        assert_eq!([ago(then, now(59)), ago(then, now(7300)), ago(then, now(90_000))], ["59s", "2h", "1d"]);
        assert_eq!(elapsed(Duration::from_millis(450)), "0.5s");
        assert_eq!(elapsed(Duration::from_secs(200)), "3m 20s");
    }
}
