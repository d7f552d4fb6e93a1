#define _GNU_SOURCE
#include "context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char CACHE_MAGIC[16] = "RKLLMFAKE-CACHE";

void sequence_free(struct sequence *sequence)
{
    free(sequence->tokens);
    memset(sequence, 0, sizeof *sequence);
}

bool sequence_add(struct sequence *sequence, const struct token *tokens, size_t count)
{
    if (sequence->count + count > CONTEXT_TOKENS_MAX)
        return false;
    if (sequence->count + count > sequence->room) {
        size_t room = 2 * (sequence->count + count);
        struct token *larger = realloc(sequence->tokens, room * sizeof *larger);
        if (!larger)
            return false;
        sequence->tokens = larger;
        sequence->room = room;
    }
    if (count)
        memcpy(sequence->tokens + sequence->count, tokens, count * sizeof *tokens);
    sequence->count += count;
    return true;
}

static bool is_space(char byte)
{
    return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
}

size_t token_length(const char *text)
{
    size_t length = 0;
    while (is_space(text[length]) && length < TOKEN_BYTES)
        length++;
    if (length > 1 && text[length] && !is_space(text[length]))
        return length - 1; /* a run of white space is a token of its own; the last of it belongs to the word */
    while (text[length] && !is_space(text[length]) && length < TOKEN_BYTES)
        length++;
    size_t whole = length;
    while (whole > 1 && ((unsigned char)text[whole] & 0xc0) == 0x80) /* not within a character */
        whole--;
    return whole;
}

bool sequence_add_text(struct sequence *sequence, const char *text)
{
    for (size_t length; (length = token_length(text)); text += length) {
        struct token token = {0};
        memcpy(token.text, text, length);
        if (!sequence_add(sequence, &token, 1))
            return false;
    }
    return true;
}

bool sequence_add_ids(struct sequence *sequence, const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct token token = {0};
        snprintf(token.text, sizeof token.text, " <%d>", ids[i]);
        if (!sequence_add(sequence, &token, 1))
            return false;
    }
    return true;
}

bool sequence_add_rows(struct sequence *sequence, const float *rows, size_t count, size_t width)
{
    for (size_t i = 0; i < count; i++) {
        struct token token = {0};
        snprintf(token.text, sizeof token.text, " {%08x}", (uint32_t)hash_bytes(0, rows + i * width, width * sizeof *rows));
        if (!sequence_add(sequence, &token, 1))
            return false;
    }
    return true;
}

size_t sequence_common(const struct sequence *one, const struct sequence *other)
{
    size_t count = 0;
    while (count < one->count && count < other->count && !strcmp(one->tokens[count].text, other->tokens[count].text))
        count++;
    return count;
}

void sequence_shift(struct sequence *sequence, size_t keep, size_t most)
{
    if (sequence->count <= most)
        return;
    size_t gone = sequence->count - most;
    if (keep > most)
        keep = most;
    memmove(sequence->tokens + keep, sequence->tokens + keep + gone, (sequence->count - keep - gone) * sizeof *sequence->tokens);
    sequence->count -= gone;
}

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count)
{
    const unsigned char *byte = bytes;
    hash ^= 0xcbf29ce484222325ULL;
    while (count--)
        hash = (hash ^ *byte++) * 0x100000001b3ULL;
    return hash ^ (hash >> 29);
}

bool cache_save(const char *path, uint64_t model, const struct sequence *sequence)
{
    uint64_t count = sequence->count;
    FILE *file = fopen(path, "wb");
    if (!file)
        return false;
    bool done = fwrite(CACHE_MAGIC, sizeof CACHE_MAGIC, 1, file) == 1 && fwrite(&model, sizeof model, 1, file) == 1 &&
                fwrite(&count, sizeof count, 1, file) == 1 &&
                fwrite(sequence->tokens, sizeof *sequence->tokens, count, file) == count;
    return !fclose(file) && done;
}

const char *cache_load(const char *path, uint64_t model, struct sequence *sequence)
{
    char magic[sizeof CACHE_MAGIC];
    uint64_t maker, count;
    const char *wrong = NULL;
    FILE *file = fopen(path, "rb");
    if (!file)
        return "cannot be opened";
    sequence->count = 0;
    if (fread(magic, sizeof magic, 1, file) != 1 || memcmp(magic, CACHE_MAGIC, sizeof magic))
        wrong = "is no prompt cache";
    else if (fread(&maker, sizeof maker, 1, file) != 1 || fread(&count, sizeof count, 1, file) != 1)
        wrong = "is truncated";
    else if (maker != model)
        wrong = "was saved by another model";
    struct token token;
    for (uint64_t i = 0; !wrong && i < count; i++) {
        if (fread(&token, sizeof token, 1, file) != 1)
            wrong = "is truncated";
        else if (token.text[TOKEN_BYTES] || !sequence_add(sequence, &token, 1))
            wrong = "is damaged";
    }
    fclose(file);
    if (wrong)
        sequence->count = 0;
    return wrong;
}
