//! What somebody is told who comes while an app is worked on.

use crate::model::store;
use crate::model::{AppName, Build, Claim, Holder};

use super::Server;

/// A busy app in words.
pub(crate) struct Busy {
    /// One line: who, what, since when.
    pub(crate) reason: String,
    /// That, and what can be done.
    pub(crate) details: Vec<String>,
}

/// Says who works on the app, on what, since when, and how to follow it.
pub(crate) async fn describe(server: &Server, app: &AppName, holder: &Holder) -> Busy {
    let seconds = jiff::Timestamp::now().as_second().saturating_sub(holder.since.as_second()).max(0);
    let since = humantime::format_duration(std::time::Duration::from_secs(seconds.unsigned_abs()));
    match holder.claim {
        Claim::Build(number) => {
            let name = Build::object_name(app, number);
            let build = store::load::<Build>(&*server.stages().store, &name).await.ok().flatten();
            let commit =
                build.map(|build| format!(" of {}", build.object.commit.short())).unwrap_or_default();
            let reason =
                format!("{app} is busy: {} is pushing, build {number}{commit}, for {since}", holder.by);
            let details = vec![
                format!("{reason}."),
                format!("Follow it:         {}", server.addresses().follow(app, number)),
                "Queue behind it:   git push -o wait deis main".to_owned(),
                "Take its place:    git push -o supersede deis main".to_owned(),
            ];
            Busy { reason, details }
        }
        Claim::Change(number) => {
            let reason = format!("{app} is busy: {} is releasing {number}, for {since}", holder.by);
            Busy { details: vec![format!("{reason}. Try again in a moment.")], reason }
        }
    }
}
