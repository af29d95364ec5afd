//! Has this node read its configuration again, for an operator, and tells what became of each difference.

use holdfast_proto::v1::{ConfigDifference, ReloadConfigReply, ReloadConfigRequest};

use super::{
    desk::Desk,
    fault::{Class, Fault},
    services::reasoned,
};
use crate::live::Difference;

impl Desk {
    /// Reads again what this node was started with. Never handed to another node: each has a file of its own.
    /// # Errors
    /// HF2301: no reason; HF2411: there is nothing to read, or it has mistakes. Nothing changes then.
    pub(crate) async fn reload_config(
        &self,
        request: ReloadConfigRequest,
    ) -> Result<ReloadConfigReply, Fault> {
        let ReloadConfigRequest { dry_run, reason } = request;
        reasoned(&reason)?;
        let node = self.coordinator().config().node.id;
        let Some(reread) = self.coordinator().reread() else {
            let words = "this node was started without a file that could be read again";
            return Err(refused(words));
        };
        if !dry_run {
            tracing::warn!(by = self.caller().name, reason, "the configuration is read again");
            // A node is told to read its file also while nobody leads; then nobody can write down that it was.
            if self.leading().0 {
                self.note("config.reload", format!("node {node}"), reason).await?;
            }
        }
        let reading = tokio::task::spawn_blocking(move || reread.reread(dry_run)).await;
        let differences = reading
            .unwrap_or_else(|fault| Err(fault.to_string()))
            .map_err(|words| refused(&words))?;
        let differences = differences.into_iter().map(told).collect();
        Ok(ReloadConfigReply { node, dry_run, differences })
    }
}

fn refused(words: &str) -> Fault {
    Fault::new(Class::WrongStatus, "HF2411", format!("nothing was changed: {words}"))
}

fn told(difference: Difference) -> ConfigDifference {
    let Difference { key, from, to, verdict, cause } = difference;
    ConfigDifference { key, from, to, verdict: verdict.word().to_owned(), cause }
}
