//! The application that the README shows, with its reaper.

use pgonce::Idempotency;

async fn run(_: Idempotency) -> anyhow::Result<()> {
    Ok(())
}

// README begins
use pgonce::Reaper;

async fn serve(idempotency: Idempotency) -> anyhow::Result<()> {
    let reaper = Reaper::new(idempotency.clone()).spawn();
    run(idempotency).await?; // the application
    reaper.stop().await;
    Ok(())
}
// README ends
