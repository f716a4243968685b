//! The events of a build from its pod's log: read again from the beginning after a break, and none told twice.

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::job::CONTAINER;
use crate::build::{BuildEvent, NumberedEvent};
use crate::kubernetes::once;

/// The longest line that is read; an event is shorter.
const MAX_LINE_BYTES: usize = 4 << 20;
/// How long to wait before a broken stream is opened again.
const PAUSE: Duration = Duration::from_millis(500);

/// What a log says.
#[derive(Debug)]
pub(super) enum Said {
    /// An event.
    Event(NumberedEvent),
    /// We may not read logs.
    Forbidden,
}

/// A log that is being read; reading ends when this is dropped.
pub(super) struct Log {
    pub(super) said: mpsc::Receiver<Said>,
    task: JoinHandle<()>,
}

impl Log {
    /// Reads what a pod says after event `last`.
    pub(super) fn follow(pods: Api<Pod>, pod: String, last: u64) -> Self {
        let (sender, said) = mpsc::channel(64);
        let task = tokio::spawn(async move { follow(&pods, &pod, last, &sender).await });
        Self { said, task }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends when the build has said how it ended, and else when nobody listens any more.
async fn follow(pods: &Api<Pod>, pod: &str, mut last: u64, sender: &mpsc::Sender<Said>) {
    let parameters =
        LogParams { container: Some(CONTAINER.to_owned()), follow: true, ..LogParams::default() };
    while !sender.is_closed() {
        match once(pods.log_stream(pod, &parameters)).await {
            Ok(stream) => match read(stream, &mut last, sender).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(error = %error, pod, "a pod's log broke off"),
            },
            Err(kube::Error::Api(status)) if status.code == 403 => {
                drop(sender.send(Said::Forbidden).await);
                return;
            }
            // The pod is gone, or not quite there yet.
            Err(error) => tracing::debug!(error = %error, pod, "a pod's log cannot be opened"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends on every event after `last`; true if the last of the build was among them, or nobody listens.
async fn read(stream: impl AsyncBufRead, last: &mut u64, sender: &mpsc::Sender<Said>) -> io::Result<bool> {
    let mut stream = pin!(stream);
    let mut line = Vec::new();
    loop {
        let part = stream.fill_buf().await?;
        if part.is_empty() {
            return Ok(false);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(part.len());
        if line.len() + taken <= MAX_LINE_BYTES {
            line.extend_from_slice(&part[..taken]);
        }
        let used = taken + usize::from(end.is_some());
        stream.as_mut().consume(used);
        if end.is_none() {
            continue;
        }
        // What is no event is the engine's last words, which the pod's status has too.
        let event = serde_json::from_slice::<NumberedEvent>(&line).ok();
        line.clear();
        let Some(event) = event.filter(|event| event.number > *last) else { continue };
        *last = event.number;
        let is_end = matches!(event.event, BuildEvent::Finished { .. } | BuildEvent::Failed { .. });
        if sender.send(Said::Event(event)).await.is_err() || is_end {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> String {
        let event = BuildEvent::Note { text: format!("n{number}") };
        serde_json::to_string(&NumberedEvent { number, event }).unwrap() + "\n"
    }

    #[tokio::test]
    async fn a_log_that_is_read_again_tells_nothing_twice() {
        let (sender, mut said) = mpsc::channel(16);
        let mut last = 0;
        let broken = [line(1), line(2), "not json\n".to_owned(), line(3)[..20].to_owned()].concat();
        assert!(!read(broken.as_bytes(), &mut last, &sender).await.unwrap());
        let whole = [line(1), line(2), line(3), line(4)].concat();
        assert!(!read(whole.as_bytes(), &mut last, &sender).await.unwrap());
        drop(sender);
        let mut numbers = Vec::new();
        while let Some(Said::Event(event)) = said.recv().await {
            numbers.push(event.number);
        }
        assert_eq!(numbers, [1, 2, 3, 4]);
    }
}
