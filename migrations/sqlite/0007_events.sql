-- Who changed what, when and from where. A row is written in the transaction of its change, and stays as it is.

create table events (
    id          integer primary key autoincrement,
    account_id  blob not null check (length(account_id) = 16),
    key_id      blob,
    event       text not null,
    detail      text,
    at          text not null,
    by_key      blob,
    address     text,
    request_id  text
) strict;

create index events_of_account on events (account_id, id desc);
create index events_by_age on events (at);

-- What is older than this may be removed, and nothing else.
create table event_retention (
    only_row   integer primary key default 1 check (only_row = 1),
    before_at  text not null
) strict;

insert into event_retention (before_at) values ('1970-01-01T00:00:00+00:00');

create trigger event_unchanged before update on events
begin
    select raise(abort, 'events are kept as they are');
end;

create trigger event_kept before delete on events when old.at >= (select before_at from event_retention)
begin
    select raise(abort, 'events are kept as they are');
end;
