//! How the router introduces itself to a node, and what its calls carry.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use node_client::{ConnectError, Introduce, Introduced, NodeClient};
use telemetry::traces::{TRACEPARENT, Traceparent};

use super::witness::{ShardName, Witness};
use crate::trace;

/// The shard that a node must be, and the router's record of the shards.
pub struct Greeting {
    pub witness: Arc<Witness>,
    pub shard: ShardName,
}

#[tonic::async_trait]
impl Introduce for Greeting {
    async fn introduce(&self, mut node: NodeClient, uri: &str) -> Result<Introduced, ConnectError> {
        let told = self.witness.mark(self.shard.number);
        let answer = node.identify(self.witness.introduce(&self.shard, None)).await;
        let answer = answer
            .map_err(|status| ConnectError::Silent { uri: uri.to_owned(), status: status.message().to_owned() })?
            .into_inner();
        self.witness
            .hear(&self.shard, uri, told, &answer)
            .map_err(|disagreements| ConnectError::Refused { uri: uri.to_owned(), disagreements })?;
        Ok(Introduced::of(&answer))
    }

    /// The router's mark of the shard, which reads must have reached, and the trace of the request.
    fn headers(&self, headers: &mut HeaderMap) {
        // A read runs in its request's task and takes the trace from there. Writes share a call, so each operation
        // carries its own trace.
        if let Some(traceparent) = trace::current_traceparent()
            && let Ok(text) = HeaderValue::from_str(traceparent.encode(&mut Traceparent::buffer()))
        {
            headers.insert(TRACEPARENT, text);
        }
        let mark = self.witness.mark(self.shard.number);
        if let Ok(at_least) = HeaderValue::try_from(wire::at_least_to_header(mark)) {
            headers.insert(wire::AT_LEAST, at_least);
        }
    }
}
