-- For the stream towards legacy (`crossfade sync --towards legacy`), in the legacy database: tags as new has them.
CREATE SCHEMA IF NOT EXISTS crossfade_copy;
CREATE TABLE IF NOT EXISTS crossfade_copy.tags (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE IF NOT EXISTS crossfade_copy.post_tags (post_id bigint, tag_id bigint, PRIMARY KEY (post_id, tag_id));
