-- The legacy schema. It grew, and it shows:
--   * every timestamp is the wall clock of Europe/Berlin, without a zone, in whole seconds;
--     the hour that the autumn repeats cannot be told apart (PostgreSQL reads it as winter time)
--   * money is a number of cents, written as text
--   * "nothing" is NULL in old rows and '' in newer ones
--   * rows are not deleted but marked with deleted = 'Y'
--   * authors' names and the number of comments are copied by hand to where they are shown
--   * tags are one text with a comma on both ends (',linux,python,'), so that LIKE can find one
--   * there are no foreign keys

-- Both functions are the only places that know the zone.
CREATE FUNCTION wall_clock() RETURNS timestamp LANGUAGE sql STABLE
    AS $$ SELECT date_trunc('second', now() AT TIME ZONE 'Europe/Berlin') $$;

CREATE FUNCTION api_time(wall timestamp) RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT to_char(wall AT TIME ZONE 'Europe/Berlin' AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') $$;

CREATE TABLE users (
    user_id  serial PRIMARY KEY,
    login    varchar(32)  NOT NULL,
    passwd   varchar(255) NOT NULL,                    -- scrypt:N:r:p$salt$hex
    fullname varchar(80)  NOT NULL,
    email    varchar(200),
    about    text,
    level    smallint     NOT NULL DEFAULT 0,          -- 0 member, 5 moderator, 9 admin
    balance  varchar(20)  NOT NULL DEFAULT '0',        -- cents
    created  timestamp(0) NOT NULL DEFAULT wall_clock(),
    deleted  char(1)      NOT NULL DEFAULT 'N'
);
CREATE UNIQUE INDEX users_login ON users (login) WHERE deleted = 'N';

CREATE TABLE sessions (
    sid_hash char(64)     PRIMARY KEY,                 -- sha256 of the cookie's sid, in hex
    user_id  integer      NOT NULL,
    created  timestamp(0) NOT NULL DEFAULT wall_clock(),
    expires  timestamp(0) NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE posts (
    post_id      serial PRIMARY KEY,
    user_id      integer      NOT NULL,
    author_login varchar(32)  NOT NULL,
    author_name  varchar(80)  NOT NULL,
    title        varchar(200) NOT NULL,
    body         text         NOT NULL,
    tags         varchar(300),
    ncomments    integer      NOT NULL DEFAULT 0,
    created      timestamp(0) NOT NULL DEFAULT wall_clock(),
    changed      timestamp(0),                         -- NULL: never changed
    deleted      char(1)      NOT NULL DEFAULT 'N'
);
CREATE INDEX posts_user ON posts (user_id, post_id);

CREATE TABLE comments (
    comment_id   serial PRIMARY KEY,
    post_id      integer      NOT NULL,
    user_id      integer      NOT NULL,
    author_login varchar(32)  NOT NULL,
    author_name  varchar(80)  NOT NULL,
    body         text         NOT NULL,
    created      timestamp(0) NOT NULL DEFAULT wall_clock(),
    deleted      char(1)      NOT NULL DEFAULT 'N'
);
CREATE INDEX comments_post ON comments (post_id, comment_id);
CREATE INDEX comments_user ON comments (user_id);

CREATE TABLE transfers (
    transfer_id serial PRIMARY KEY,
    from_user   integer      NOT NULL,
    from_login  varchar(32)  NOT NULL,
    to_user     integer      NOT NULL,
    to_login    varchar(32)  NOT NULL,
    amount      varchar(20)  NOT NULL,                 -- cents
    note        varchar(200),
    idem_key    varchar(64),
    created     timestamp(0) NOT NULL DEFAULT wall_clock()
);
CREATE UNIQUE INDEX transfers_idem ON transfers (from_user, idem_key);
CREATE INDEX transfers_from ON transfers (from_user, transfer_id);
CREATE INDEX transfers_to ON transfers (to_user, transfer_id);
