//! Parts of a test that share a cluster.

use std::time::Instant;

use anyhow::Context;

/// Runs one part, names it in its error, and says how long it took.
pub async fn section(name: &str, part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    part.await.with_context(|| name.to_owned())?;
    eprintln!("  {name}: {:.1?}", begun.elapsed());
    Ok(())
}
