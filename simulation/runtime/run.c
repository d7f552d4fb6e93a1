/* One request: checks, prefill, decoding, the end; and abort. */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int give(struct model *model, void *userdata, LLMCallState state, RKLLMResult *result)
{
#if GENERATION >= 4
    if (!userdata)
        userdata = model->default_userdata;
#endif
#if GENERATION >= 3
    int wish = model->callback(result, userdata, state);
    if (wish)
        LINE("W", "simulation: the callback returned %d, which ends the run here", wish);
    return wish;
#else
    model->callback(result, userdata, state);
    return 0;
#endif
}

static int give_text(struct model *model, void *userdata, const char *text, bool waiting)
{
    RKLLMResult result;
    memset(&result, 0, sizeof result);
    result.text = text;
    result.token_id = text ? (int32_t)(hash_bytes(0, text, strlen(text)) % (uint64_t)model->script.vocabulary) : 0;
    return give(model, userdata, waiting ? RKLLM_RUN_WAITING : RKLLM_RUN_NORMAL, &result);
}

static void give_numbers(struct model *model, void *userdata, const struct request *request, const struct sequence *prompt)
{
    RKLLMResult result;
    memset(&result, 0, sizeof result);
    bool logits = request->mode == RKLLM_INFER_GET_LOGITS;
    size_t width = (size_t)(logits ? model->script.vocabulary : model->script.width);
    float *numbers = numbers_of(model, prompt, width);
    LLMCallState state = RKLLM_RUN_NORMAL;
    if (!logits) {
        result.last_hidden_layer = (RKLLMResultLastHiddenLayer){numbers, (int)width, (int)prompt->count};
#if GENERATION == 1
        state = RKLLM_RUN_GET_LAST_HIDDEN_LAYER;
#endif
    }
#if GENERATION >= 2
    if (logits)
        result.logits = (RKLLMResultLogits){numbers, (int)width, (int)prompt->count};
#endif
    give(model, userdata, state, &result);
    free(numbers);
}

/* The end of a run from outside or by script; true when the run is to end now. */
static bool fault_at(struct model *model, long token)
{
    const struct script *script = &model->script;
    if (script->crash_at == token)
        crash();
    if (script->exit_at == token)
        _exit((int)script->exit_code);
    while (script->hang_at == token && (script->hang_ignores_abort || !atomic_load(&model->aborted)))
        sleep_ms(10);
    return atomic_load(&model->aborted);
}

/* The schedule of the answer's tokens. Returns what rkllm_run returns. */
static int generate(struct model *model, void *userdata, const struct request *request, long long due, size_t *given)
{
    const struct script *script = &model->script;
    size_t context = (size_t)model->parameters.max_context_len, most = context;
    size_t keep = model->system_tokens;
#if GENERATION >= 2
    if (model->parameters.n_keep >= 0)
        keep = (size_t)model->parameters.n_keep;
#endif
    if (request->max_new_tokens > 0 && (size_t)request->max_new_tokens < most)
        most = (size_t)request->max_new_tokens;
    struct piece *pieces = calloc(most, sizeof *pieces);
    if (!pieces)
        return -1;
    size_t count = answer(model, request, pieces, most);
    int code = 0;
    for (size_t i = 0; i < count; i++) {
        long token = (long)i + 1;
        if (i) {
            double heated = script->heat_seconds > 0 ? (double)(due - model->first_run_ns) / 1e9 / script->heat_seconds : 1;
            double factor = 1 + (script->heat_factor - 1) * (heated < 1 ? heated : 1);
            due += (long long)(1e9 / (script->tokens_per_s * factor));
        }
        if (fault_at(model, token) || !wait_until(model, due))
            break;
        for (long line = 0; line < script->token_lines; line++)
            LINE("I", "simulation: line %ld of token %ld", line + 1, token);
        if (model->kv.count >= context)
            sequence_shift(&model->kv, keep, keep < context ? keep + (context - keep) / 2 : context / 2);
        struct token seen = {0};
        size_t length = strnlen(pieces[i].text, TOKEN_BYTES);
        while (length > 0 && pieces[i].text[length] && ((unsigned char)pieces[i].text[length] & 0xc0) == 0x80)
            length--;
        memcpy(seen.text, pieces[i].text, length);
        sequence_add(&model->kv, &seen, 1);
        *given = i + 1;
        if (give_text(model, userdata, pieces[i].text, pieces[i].waiting))
            break;
        if (script->null_text)
            give_text(model, userdata, NULL, false);
        if (script->error_at == token) {
            LINE("E", "simulation: the run fails after %ld tokens", token);
            give(model, userdata, RKLLM_RUN_ERROR, NULL);
            code = (int)script->error_code;
            *given = 0;
            free(pieces);
            return code ? code : 1;
        }
    }
    free(pieces);
    return code;
}

static void finish(struct model *model, void *userdata, long long began, long long first, size_t prefilled, size_t given)
{
    double whole = (now_ns() - began) / 1e6, step = 1000 / model->script.tokens_per_s;
    /* The first token is a step of decoding too; the time to it is prefill and this step. */
    double prefill = given ? (first - began) / 1e6 - step : whole;
    prefill = prefill > 0 ? prefill : 0;
    RKLLMResult result;
    memset(&result, 0, sizeof result);
#if GENERATION >= 3
    result.perf = (RKLLMPerfStat){(float)prefill, (int)prefilled, (float)(whole - prefill), (int)given, (float)memory_mb(&model->script)};
#endif
    give(model, userdata, RKLLM_RUN_FINISH, &result);
    if (log_level() >= 1)
        print_table(model, prefill, prefilled, whole - prefill, given);
    if (log_level() >= 2)
        LINE("I", "current kv cache size: %zu", model->kv.count);
}

static bool has_adapter(const struct model *model, const char *name)
{
    for (size_t i = 0; i < model->adapter_count; i++)
        if (!strcmp(model->adapters[i], name))
            return true;
    return false;
}

static int refuse(struct model *model, void *userdata)
{
    give(model, userdata, RKLLM_RUN_ERROR, NULL);
    return -1;
}

static int run(struct model *model, const struct request *request, void *userdata)
{
    const struct script *script = &model->script;
    struct sequence prompt = {0};
    size_t context = (size_t)model->parameters.max_context_len, given = 0, system = model->system_tokens;
    bool fresh = !request->keep_history || !model->kv.count || script->history_ignored;
    if (request->adapter && !has_adapter(model, request->adapter)) {
        LINE("E", "lora adapter %s is not loaded", request->adapter);
        return refuse(model, userdata);
    }
#if GENERATION == 1
    if (request->mode == RKLLM_INFER_GET_LOGITS)
        return refuse(model, userdata);
#endif
    if (fresh) {
        if (!add_system(model, &prompt))
            return sequence_free(&prompt), refuse(model, userdata);
        system = prompt.count;
    }
    if (!add_prompt(model, request, &prompt) || prompt.count >= context) {
        LINE("E", "prompt gather than max context (prompt: %zu tokens, max context: %zu)", prompt.count, context);
        sequence_free(&prompt);
        return refuse(model, userdata);
    }
    if (fresh)
        model->kv.count = 0;
    model->system_tokens = system;
#if GENERATION >= 2
    if (model->kv.count + prompt.count >= context)
        sequence_shift(&model->kv, model->parameters.n_keep < 0 ? system : (size_t)model->parameters.n_keep, context - prompt.count - 1);
#endif
    size_t known = fresh ? sequence_common(&model->cached, &prompt) : 0, prefilled = prompt.count - known;

    long long began = now_ns();
    if (!model->first_run_ns)
        model->first_run_ns = began;
    double share = (double)prefilled / (double)(script->seqlen > 0 ? script->seqlen : 1);
    long long first = began + (long long)(script->ttft_ms * 1e6 * (share > 1 ? share : 1));
    for (long line = 0; line < script->matmul_failures; line++)
        LINE("E", "matmul(w8a8) run failed");
    bool going = !fault_at(model, 0) && wait_until(model, first);
    if (going && request->mode != RKLLM_INFER_GENERATE)
        give_numbers(model, userdata, request, &prompt);
    if (going && !sequence_add(&model->kv, prompt.tokens, prompt.count))
        going = false;
    sequence_free(&prompt);
    if (going && request->save_cache) {
        if (!cache_save(request->save_cache, model->hash, &model->kv)) {
            LINE("E", "failed to save prompt cache to %s", request->save_cache);
            return refuse(model, userdata);
        }
        LINE("I", "prompt cache saved to %s", request->save_cache);
    }
    int code = going && request->mode == RKLLM_INFER_GENERATE ? generate(model, userdata, request, first, &given) : 0;
    if (code)
        return code == 1 ? 0 : code; /* an error that only the callback told */
    if (atomic_load(&model->aborted))
        sleep_ms(script->abort_ms);
    finish(model, userdata, began, first, prefilled, given);
    return 0;
}

EXPORT int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer, void *userdata)
{
    struct model *model = handle;
    if (!model || !input || !infer)
        return -1;
    if (atomic_exchange(&model->busy, true)) {
        LINE("E", "another run is going on");
        return -1;
    }
    atomic_store(&model->aborted, false);
    model->script = model->about;
    script_read_environment(&model->script);
    if (model->broken) {
        dprintf(2, "GGML_ASSERT: ggml.c:4000: view_src == NULL || data_size + view_offs <= ggml_nbytes(view_src)\n");
        abort();
    }
    for (long i = 0; model->previous_userdata && i < model->script.late_results; i++)
        give_text(model, model->previous_userdata, " late", false);
    model->runs++;
    struct request request = request_of(input, infer, &model->parameters);
    int code = (int)model->script.run_code;
    long long began = now_ns();
    if (code)
        LINE("E", "rkllm run failed");
    else
        code = run(model, &request, userdata);
    if (model->script.run_times)
        LINE("I", "simulation: ran from %lld to %lld ns", began, now_ns());
    model->previous_userdata = userdata;
    atomic_store(&model->busy, false);
    return code;
}

EXPORT int rkllm_run_async(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer, void *userdata)
{
    (void)handle, (void)input, (void)infer, (void)userdata;
    LINE("E", "simulation: rkllm_run_async is not simulated");
    return -1;
}

EXPORT int rkllm_abort(LLMHandle handle)
{
    struct model *model = handle;
    if (!model)
        return -1;
    if (model->script.abort_code)
        return (int)model->script.abort_code;
    atomic_store(&model->aborted, true);
    return 0;
}

EXPORT int rkllm_is_running(LLMHandle handle)
{
    struct model *model = handle;
    bool busy = model && atomic_load(&model->busy);
    return GENERATION >= 4 ? busy : !busy; /* the meaning was turned round in 1.3.0 */
}
