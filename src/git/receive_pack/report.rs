//! What the client is told: progress while it waits, and what became of each command.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::request::Capabilities;
use crate::git::pkt_line::{Band, FLUSH, write_band, write_line};
use crate::model::RefName;

/// The longest reason for a refusal, in characters.
const MAX_REASON: usize = 300;

/// The decision about one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The ref is what the client wants it to be.
    Accepted,
    /// It is not, for this reason: one line.
    Refused(String),
}

/// Talks to a client that has sent all and waits for the report.
#[derive(Debug)]
pub struct Reporter<W> {
    writer: W,
    sideband: bool,
    report_status: bool,
    atomic: bool,
    /// In the order of the client, by the names it gave.
    names: Vec<String>,
    refused: BTreeMap<String, String>,
}

impl<W: AsyncWrite + Unpin> Reporter<W> {
    pub(super) fn new(writer: W, capabilities: &Capabilities, names: Vec<String>) -> Self {
        Self {
            writer,
            sideband: capabilities.sideband,
            report_status: capabilities.report_status,
            atomic: capabilities.atomic,
            names,
            refused: BTreeMap::new(),
        }
    }

    /// Refuses a command before anybody is asked.
    pub(super) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        self.refused.entry(name.to_owned()).or_insert_with(|| reason.into());
    }

    /// Whether nothing is left to decide.
    pub(super) fn all_refused(&self) -> bool {
        (self.atomic && !self.refused.is_empty())
            || self.names.iter().all(|name| self.refused.contains_key(name))
    }

    pub(super) fn is_refused(&self, name: &str) -> bool {
        self.refused.contains_key(name)
    }

    /// Shows `text` to the person, as it is: give each line its line feed.
    pub async fn progress(&mut self, text: &str) -> io::Result<()> {
        if self.sideband && !text.is_empty() {
            write_band(&mut self.writer, Band::Progress, text.as_bytes()).await?;
        }
        Ok(())
    }

    /// Sends what shows nothing, so that nobody between here and the client forgets the connection.
    pub async fn keepalive(&mut self) -> io::Result<()> {
        if self.sideband {
            write_band(&mut self.writer, Band::Progress, b"").await?;
        }
        Ok(())
    }

    /// Ends the push with a decision for each command. One without a decision is refused; with `--atomic`, one
    /// refusal refuses all.
    pub async fn finish(self, verdicts: impl IntoIterator<Item = (RefName, Verdict)>) -> io::Result<W> {
        let verdicts =
            verdicts.into_iter().map(|(name, verdict)| (name.as_str().to_owned(), verdict)).collect();
        self.report("ok", verdicts).await
    }

    /// Ends the push before its objects were taken.
    pub(super) async fn fail(self, unpack: &str) -> io::Result<W> {
        let refused =
            |name: &String| (name.clone(), Verdict::Refused("the objects were not taken".to_owned()));
        let verdicts = self.names.iter().map(refused).collect();
        self.report(&one_line(unpack), verdicts).await
    }

    async fn report(mut self, unpack: &str, verdicts: BTreeMap<String, Verdict>) -> io::Result<W> {
        if self.report_status {
            let report = self.status(unpack, &verdicts);
            if self.sideband {
                write_band(&mut self.writer, Band::Data, &report).await?;
            } else {
                self.writer.write_all(&report).await?;
            }
        }
        if self.sideband {
            self.writer.write_all(FLUSH).await?;
        }
        self.writer.flush().await?;
        Ok(self.writer)
    }

    fn status(&self, unpack: &str, verdicts: &BTreeMap<String, Verdict>) -> Vec<u8> {
        let reason = |name: &String| match (self.refused.get(name), verdicts.get(name)) {
            (Some(reason), _) | (None, Some(Verdict::Refused(reason))) => Some(reason.as_str()),
            (None, None) => Some("not decided"),
            (None, Some(Verdict::Accepted)) => None,
        };
        let all = self.atomic && self.names.iter().any(|name| reason(name).is_some());
        let mut report = Vec::new();
        write_line(&mut report, format!("unpack {unpack}\n").as_bytes());
        for name in &self.names {
            let line = match reason(name) {
                Some(reason) => format!("ng {name} {}\n", one_line(reason)),
                None if all => format!("ng {name} another ref of this atomic push was refused\n"),
                None => format!("ok {name}\n"),
            };
            write_line(&mut report, line.as_bytes());
        }
        report.extend_from_slice(FLUSH);
        report
    }
}

/// A report has one line for each ref.
fn one_line(reason: &str) -> String {
    let line = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = line.take(MAX_REASON).collect();
    if line.is_empty() { "refused".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter(atomic: bool) -> Reporter<Vec<u8>> {
        let capabilities = Capabilities { report_status: true, atomic, ..Capabilities::default() };
        Reporter::new(Vec::new(), &capabilities, vec!["refs/heads/a".to_owned(), "refs/heads/b".to_owned()])
    }

    fn verdict(branch: &str, verdict: Verdict) -> (RefName, Verdict) {
        (RefName::branch(branch).unwrap(), verdict)
    }

    #[tokio::test]
    async fn every_command_is_answered_in_the_clients_order() {
        let written = reporter(false).finish([verdict("b", Verdict::Accepted)]).await.unwrap();
        let written = String::from_utf8(written).unwrap();
        assert_eq!(written, "000eunpack ok\n0020ng refs/heads/a not decided\n0014ok refs/heads/b\n0000");
    }

    #[tokio::test]
    async fn one_refusal_of_an_atomic_push_refuses_all() {
        let verdicts =
            [verdict("a", Verdict::Refused("no\nreason".to_owned())), verdict("b", Verdict::Accepted)];
        let written = String::from_utf8(reporter(true).finish(verdicts).await.unwrap()).unwrap();
        assert!(written.contains("ng refs/heads/a no reason\n"), "{written}");
        assert!(written.contains("ng refs/heads/b another"), "{written}");
    }

    #[tokio::test]
    async fn progress_without_a_sideband_is_not_written() {
        let mut reporter = reporter(false);
        reporter.progress("hello\n").await.unwrap();
        reporter.keepalive().await.unwrap();
        assert_eq!(reporter.writer, b"");
    }
}
