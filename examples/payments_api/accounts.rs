//! Accounts: the tenants' customers and what they have.

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool, Row};
use utoipa::ToSchema;

use crate::error::{ApiError, ProblemBody};
use crate::input::Id;
use crate::tenants::Tenant;

/// The name of an account. Only what can be one reaches the database.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct AccountId(String);

impl AccountId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccountId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let is_valid = (1..=40).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_valid { Ok(Self(id)) } else { Err("an account is 1 to 40 letters and digits") }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Account {
    #[schema(example = "alice")]
    id: String,
    /// In cents.
    #[schema(example = 50000)]
    balance: i64,
}

impl FromRow<'_, PgRow> for Account {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self { id: row.try_get("id")?, balance: row.try_get("balance")? })
    }
}

/// An account and its balance.
#[utoipa::path(
    get,
    path = "/accounts/{id}",
    operation_id = "get_account",
    params(("id" = String, Path, description = "The account, for example `alice`")),
    responses(
        (status = 200, description = "The account", body = Account),
        (status = 404, description = "No such account", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    Extension(tenant): Extension<Tenant>,
    State(pool): State<PgPool>,
    Id(id): Id<AccountId>,
) -> Result<Json<Account>, ApiError> {
    let account = sqlx::query_as("SELECT id, balance FROM accounts WHERE tenant = $1 AND id = $2")
        .bind(tenant.0)
        .bind(id.as_str())
        .fetch_optional(&pool)
        .await?;
    account.map(Json).ok_or(ApiError::NotFound("account"))
}
