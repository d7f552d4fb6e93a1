/* Words in, words out: the prompt with what templates put around it, the numbers of hidden states and logits, and the text. */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>

bool add_system(struct model *model, struct sequence *prompt)
{
    return sequence_add_text(prompt, model->tools) && sequence_add_text(prompt, model->system);
}

static bool add_images(struct model *model, const struct request *request, struct sequence *prompt)
{
    const char *rest = request->text ? request->text : "", *mark = request->image_content;
    size_t width = (size_t)model->script.width, done = 0;
    char *before = NULL;
    for (const char *at; mark && *mark && done < request->images && (at = strstr(rest, mark)); done++, rest = at + strlen(mark)) {
        before = strndup(rest, (size_t)(at - rest));
        bool room = before && sequence_add_text(prompt, before) && sequence_add_text(prompt, request->image_start ? request->image_start : "") &&
                    sequence_add_rows(prompt, request->rows + done * request->count * width, request->count, width) &&
                    sequence_add_text(prompt, request->image_end ? request->image_end : "");
        free(before);
        if (!room)
            return false;
    }
    /* Images without a mark stand at the end, so that none is lost. */
    return sequence_add_text(prompt, rest) &&
           sequence_add_rows(prompt, request->rows + done * request->count * width, (request->images - done) * request->count, width);
}

/* What the model sees of a request: the template's words stand in the cache like all others. */
bool add_prompt(struct model *model, const struct request *request, struct sequence *prompt)
{
    if (request->type == RKLLM_INPUT_TOKEN)
        return sequence_add_ids(prompt, request->ids, request->count);
    if (request->type == RKLLM_INPUT_EMBED)
        return sequence_add_rows(prompt, request->rows, request->count, (size_t)model->script.width);
    char opening[32], closing[48] = "";
    opening[0] = 0;
#if GENERATION >= 2
    if (!model->custom_template) {
        snprintf(opening, sizeof opening, " <|%.16s|>", request->role);
        snprintf(closing, sizeof closing, "%s <|assistant|>", request->thinking ? "" : " <|no_think|>");
    }
#endif
    if (!sequence_add_text(prompt, model->custom_template ? model->prefix : opening))
        return false;
    if (request->type == RKLLM_INPUT_MULTIMODAL ? !add_images(model, request, prompt) : !sequence_add_text(prompt, request->text ? request->text : ""))
        return false;
    return sequence_add_text(prompt, model->custom_template ? model->postfix : closing);
}

/* Numbers that follow from every token up to each, and are never 0 unless the script says so. */
float *numbers_of(struct model *model, const struct sequence *prompt, size_t width)
{
    if (!strcmp(model->script.numbers, "zero"))
        return calloc(prompt->count * width, sizeof(float));
    float *numbers = malloc(prompt->count * width * sizeof *numbers);
    uint64_t state = model->hash + (strcmp(model->script.numbers, "varying") ? 0 : model->runs);
    if (!strcmp(model->script.numbers, "same")) {
        for (size_t i = 0; numbers && i < prompt->count * width; i++)
            numbers[i] = 1.0f + (float)(i % width);
        return numbers;
    }
    for (size_t i = 0; i < model->kv.count; i++)
        state = hash_bytes(state, model->kv.tokens[i].text, strlen(model->kv.tokens[i].text) + 1);
    for (size_t i = 0; numbers && i < prompt->count; i++) {
        state = hash_bytes(state, prompt->tokens[i].text, strlen(prompt->tokens[i].text) + 1);
        for (size_t j = 0; j < width; j++) {
            uint64_t mixed = hash_bytes(state, &j, sizeof j);
            numbers[i * width + j] = (0.1f + 0.9f * (float)(mixed >> 40) / (1 << 24)) * (mixed & 1 ? 1.0f : -1.0f);
        }
    }
    return numbers;
}

static size_t add_piece(struct piece *pieces, size_t count, size_t most, const char *text, bool split)
{
    if (count >= most)
        return count;
    size_t length = strnlen(text, PIECE_BYTES - 1), cut = length;
    while (split && cut > 0 && ((unsigned char)text[cut - 1] & 0xc0) != 0xc0)
        cut--; /* now `cut` stands behind the first byte of the last long character, or is 0 */
    bool twice = split && cut > 0 && cut < length && count + 1 < most;
    memcpy(pieces[count].text, text, twice ? cut : length);
    pieces[count++].waiting = twice;
    if (twice)
        memcpy(pieces[count++].text, text + cut, length - cut);
    return count;
}

static size_t add_words(struct piece *pieces, size_t count, size_t most, const char *text, bool split)
{
    for (size_t length; count < most && (length = token_length(text)); text += length) {
        char word[TOKEN_BYTES + 1] = "";
        memcpy(word, text, length);
        count = add_piece(pieces, count, most, word, split);
    }
    return count;
}

/* The whole answer, at most `most` tokens of it. */
size_t answer(struct model *model, const struct request *request, struct piece *pieces, size_t most)
{
    const struct script *script = &model->script;
    char line[PIECE_BYTES + 64];
    size_t count = 0, seen = model->kv.count;
    bool split = script->split_utf8, endless = !strcmp(script->reply, "sentence");
    snprintf(line, sizeof line, "[simulated runtime %s %s]", version, GENERATION_NAME);
    count = add_piece(pieces, count, most, line, false);
    if (script->reply_varies) {
        snprintf(line, sizeof line, " [run %lu]", model->runs);
        count = add_piece(pieces, count, most, line, false);
    }
    if (request->adapter) {
        snprintf(line, sizeof line, " [adapter %.64s]", request->adapter);
        count = add_piece(pieces, count, most, line, false);
    }
    if (!strcmp(script->reply, "echo")) {
        snprintf(line, sizeof line, " [top_k=%d top_p=%.3f temperature=%.3f]", request->top_k, request->top_p, request->temperature);
        count = add_piece(pieces, count, most, line, false);
        if (request->penalizes) {
            snprintf(line, sizeof line, " [repeat_penalty=%.3f frequency_penalty=%.3f presence_penalty=%.3f]", request->repeat_penalty,
                     request->frequency_penalty, request->presence_penalty);
            count = add_piece(pieces, count, most, line, false);
        }
        for (size_t i = 0; i < seen; i++)
            count = add_piece(pieces, count, most, model->kv.tokens[i].text, split);
    } else if (!strcmp(script->reply, "text")) {
        count = add_words(pieces, count, most, script->reply_text, split);
    }
#if GENERATION >= 4
    bool ignore_end = model->parameters.ignore_eos_token;
#else
    bool ignore_end = false;
#endif
    size_t end = ignore_end ? most : endless ? (size_t)script->reply_tokens : 0;
    const char *words = split ? " Żółć i 世界 🙂 żyją tu bez modelu." : " No model runs here: these words come at the speed that the vendor's table gives.";
    while (count < end && count < most)
        count = add_words(pieces, count, most < end ? most : end, words, split);
    return count;
}
