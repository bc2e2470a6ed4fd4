//! What to do with it: the first lines on the terminal.

use std::io::{self, Write};
use std::net::SocketAddr;

use crate::tenants::{TENANTS, Tenant};

pub fn print(address: SocketAddr, database: &str) {
    let (Tenant(tenant), token) = TENANTS[0];
    let tokens = TENANTS.map(|(Tenant(tenant), token)| format!("    {tenant:<10}{token}")).join("\n");
    let text = format!(
        r#"
The payments API listens on http://{address}.
Its database: {database}.

Tenants and their tokens:
{tokens}

Charge alice at the {tenant}; then do it again, with the same key; then with another amount:

curl -si http://{address}/charges -H 'Authorization: Bearer {token}' \
    -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' \
    -d '{{"account": "alice", "amount": 4200}}'

What is left on the account, and the charges:

curl -s http://{address}/accounts/alice -H 'Authorization: Bearer {token}'
curl -s http://{address}/charges -H 'Authorization: Bearer {token}'

All that it can do: http://{address}/openapi.json
Ctrl-C ends it and removes everything.
"#
    );
    // It serves also when nobody reads this.
    let _ = writeln!(io::stdout(), "{text}");
}
