-- The answers of requests that their clients may send again. They hold secrets, and are kept encrypted under a key that is
-- derived from what only the client knows.

create table idempotent_answers (
    account_id    blob not null check (length(account_id) = 16),
    key_hash      blob not null check (length(key_hash) = 32),
    request_hash  blob not null check (length(request_hash) = 32),
    sealed        blob not null,
    created_at    text not null,
    primary key (account_id, key_hash)
) strict;

create index idempotent_answers_by_age on idempotent_answers (created_at);
