/* The KV cache of a simulated model: the sequence of tokens itself, so that a test can see what a request could have seen.
 *
 * A token is a word of the text with the white space before it, at most TOKEN_BYTES long; longer words are cut, between characters.
 * Ids that were given are tokens `<id>`, rows of embeddings are tokens `{hash of the row}`. */
#ifndef CONTEXT_H
#define CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOKEN_BYTES 16
#define CONTEXT_TOKENS_MAX 131072

struct token {
    char text[TOKEN_BYTES + 1];
};

struct sequence {
    struct token *tokens;
    size_t count, room;
};

void sequence_free(struct sequence *sequence);
/* These return false when there would be more than CONTEXT_TOKENS_MAX tokens or no memory. */
bool sequence_add(struct sequence *sequence, const struct token *tokens, size_t count);
bool sequence_add_text(struct sequence *sequence, const char *text);
bool sequence_add_ids(struct sequence *sequence, const int32_t *ids, size_t count);
bool sequence_add_rows(struct sequence *sequence, const float *rows, size_t count, size_t width);
/* Number of tokens that both begin with. */
size_t sequence_common(const struct sequence *one, const struct sequence *other);
/* Forget tokens after the first `keep` until at most `most` are left. */
void sequence_shift(struct sequence *sequence, size_t keep, size_t most);

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count);
/* Length of the token at the beginning of a text, white space included; 0 at its end. */
size_t token_length(const char *text);

bool cache_save(const char *path, uint64_t model, const struct sequence *sequence);
/* Returns NULL, or what is wrong with the file. */
const char *cache_load(const char *path, uint64_t model, struct sequence *sequence);

#endif
