/* A runtime library without an NPU: the vendor's interface and log lines, the speed of a row of the vendor's table, the language of none.
 *
 * Built once per generation by build.py. Every answer begins with `[simulated runtime VERSION GENERATION]`. What a model file says about
 * itself and what a script asks for is in script.h; what a request can see of earlier ones, in context.h. Where no public page says how the
 * real library behaves, this one does what is worst for its caller: the KV cache of a finished run stays until somebody clears it or a run
 * without history begins. */
#define _GNU_SOURCE
#include "context.h"
#include "generation.h"
#include "script.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define ADAPTERS_MAX 8
#define TICK_NS 10000000L /* an abort is seen within this time */
#define PIECE_BYTES 96

#ifdef VERSION_LITERAL
/* Releases have their version in the file as a string of its own; this is how a library is told apart without calling it. */
__attribute__((used)) static const char version_literal[] = "\0" VERSION_LITERAL;
#endif
static const volatile unsigned char version_masked[] = {VERSION_MASKED, 0x5a};
static char version[32];

struct model {
    RKLLMParam parameters;
    LLMResultCallback callback;
    void *default_userdata;
    struct script about;  /* what the model file says */
    struct script script; /* with the script of this run over it */
    uint64_t hash;
    bool broken;
    long long init_ns, first_run_ns;
    bool table_printed;
    struct sequence kv, cached;
    size_t system_tokens;
    char *system, *prefix, *postfix, *tools;
    bool custom_template;
    char adapters[ADAPTERS_MAX][64];
    size_t adapter_count;
    void *previous_userdata;
    atomic_bool busy, aborted;
};

struct piece {
    char text[PIECE_BYTES];
    bool waiting;
};

/* ---- time and lines ---- */

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Wait for a moment of the schedule, counted from its beginning and not from now, so that errors do not add up; false when aborted. */
static bool wait_until(struct model *model, long long due)
{
    for (;;) {
        if (atomic_load(&model->aborted))
            return false;
        long long now = now_ns();
        if (now >= due)
            return true;
        long long next = due - now > TICK_NS ? now + TICK_NS : due;
        struct timespec moment = {next / 1000000000LL, next % 1000000000LL};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL))
            ;
    }
}

static void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time))
        ;
}

static void crash(void)
{
    *(volatile int *volatile)NULL = 0;
}

static long log_level(void)
{
    const char *level = getenv("RKLLM_LOG_LEVEL");
    return level ? strtol(level, NULL, 10) : 0;
}

__attribute__((constructor)) static void decode_version(void)
{
    for (size_t i = 0; i + 1 < sizeof version && version_masked[i] != 0x5a; i++)
        version[i] = (char)(version_masked[i] ^ 0x5a);
}

#define LINE(letter, ...) (dprintf(1, letter " rkllm: " __VA_ARGS__), dprintf(1, "\n"))

static double memory_mb(const struct script *script)
{
    char line[128];
    double kilobytes = 0;
    FILE *status = script->memory_mb > 0 ? NULL : fopen("/proc/self/status", "re");
    if (!status)
        return script->memory_mb;
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %lf", &kilobytes) == 1)
            break;
    fclose(status);
    return kilobytes / 1024;
}

static void print_table(struct model *model, double prefill_ms, size_t prefill_tokens, double generate_ms, size_t generate_tokens)
{
    static const char rule[] = "--------------------------------------------------------------------------------------";
#if GENERATION >= 2
    if (!model->table_printed) {
        LINE("I", "%s", rule);
        LINE("I", " Model init time (ms)  %.2f", model->init_ns / 1e6);
    }
#endif
    model->table_printed = true;
    LINE("I", "%s", rule);
    LINE("I", " Stage         Total Time (ms)  Tokens    Time per Token (ms)      Tokens per Second");
    LINE("I", "%s", rule);
    LINE("I", " Prefill       %-16.2f %-9zu %-24.2f %.2f", prefill_ms, prefill_tokens, prefill_ms / (prefill_tokens ? prefill_tokens : 1),
         prefill_ms > 0 ? prefill_tokens * 1000 / prefill_ms : 0);
    LINE("I", " Generate      %-16.2f %-9zu %-24.2f %.2f", generate_ms, generate_tokens, generate_ms / (generate_tokens ? generate_tokens : 1),
         generate_ms > 0 ? generate_tokens * 1000 / generate_ms : 0);
    LINE("I", "%s", rule);
#if GENERATION == 1
    LINE("I", " Memory Usage (GB)");
    LINE("I", " %.2f", memory_mb(&model->script) / 1024);
#elif GENERATION <= 3
    LINE("I", " Peak Memory Usage (GB)");
    LINE("I", " %.2f", memory_mb(&model->script) / 1024);
#else
    LINE("I", " Peak Memory Usage (MB)");
    LINE("I", " %.2f", memory_mb(&model->script));
#endif
    LINE("I", "%s", rule);
}

/* ---- init ---- */

EXPORT RKLLMParam rkllm_createDefaultParam(void)
{
    RKLLMParam parameters;
    memset(&parameters, 0, sizeof parameters);
    parameters.max_context_len = 512;
    parameters.max_new_tokens = -1;
    parameters.top_k = 40;
    parameters.top_p = 0.9f;
    parameters.temperature = 0.8f;
    parameters.repeat_penalty = 1.1f;
    parameters.mirostat_tau = 5.0f;
    parameters.mirostat_eta = 0.1f;
    parameters.skip_special_token = true;
#if GENERATION <= 3
    parameters.img_start = parameters.img_end = parameters.img_content = "";
#endif
#if GENERATION >= 2
    parameters.extend_param.enabled_cpus_num = 4;
    parameters.extend_param.enabled_cpus_mask = 0xf0;
#endif
#if GENERATION >= 3
    parameters.extend_param.n_batch = 1;
#endif
    return parameters;
}

static char *copy(const char *text)
{
    return strdup(text ? text : "");
}

static int npu_memory_exhausted(const struct script *script)
{
    const char *why = script->npu_memory == 14 ? "Bad address" : "Cannot allocate memory";
    dprintf(2, "E RKNN: [00:00:00.000] failed to allocate handle, ret: -1, errno: %ld, errstr: %s\n", script->npu_memory, why);
    dprintf(2, "E RKNN: [00:00:00.000] failed to malloc npu memory, size: 268435456\n");
    LINE("E", "load model file error!");
    if (script->npu_memory_crash)
        crash();
    return -1;
}

static bool old_driver(const char *driver)
{
    int major = 0, minor = 0, patch = 0;
    sscanf(driver, "%d.%d.%d", &major, &minor, &patch);
    return major * 10000 + minor * 100 + patch < 907;
}

static void scripted_init_faults(const struct script *script)
{
    if (script->init_exit >= 0)
        _exit((int)script->init_exit);
    if (script->init_crash)
        crash();
    while (script->init_hang)
        sleep_ms(1000);
}

static int load(struct model *model)
{
    struct script *script = &model->script;
    RKLLMParam *parameters = &model->parameters;
    script_defaults(script);
    unsigned long long hash = 0;
    enum model_kind kind = parameters->model_path ? script_read_model(script, parameters->model_path, &hash) : MODEL_UNREADABLE;
    model->about = *script;
    model->hash = hash;
    if (!script_read_environment(script))
        LINE("W", "simulation: the script in RKLLM_SIMULATION cannot be read");
    LINE("I", "rkllm-runtime version: %s, rknpu driver version: %s, platform: %s", version, script->driver, script->platform);
    LINE("W", "this runtime is a simulation: no NPU and no model, and every figure of it is simulated");
    if (old_driver(script->driver))
        LINE("W", "The rknpu driver version is too low, please upgrade to 0.9.7");
#if GENERATION >= 2
    LINE("I", "loading rkllm model from %s", parameters->model_path ? parameters->model_path : "(null)");
#endif
    scripted_init_faults(script);
    if (kind == MODEL_UNREADABLE) {
        LINE("E", "failed to open model file: %s", parameters->model_path ? parameters->model_path : "(null)");
        return -1;
    }
    if (kind == MODEL_FOREIGN) {
        LINE("E", "invalid rknn llm model magic!");
        LINE("E", "failed to load model");
        return -1;
    }
#if GENERATION >= 2
    LINE("I", "rkllm-toolkit version: %s, max_context_limit: %ld, npu_core_num: %ld, target_platform: %s, model_dtype: %s", *script->toolkit ? script->toolkit : version,
         script->context_limit, script->npu_cores, script->platform, script->dtype);
#endif
    if (parameters->max_context_len > script->context_limit) {
        LINE("E", "max_context[%d] must be less than the model's max_context_limit[%ld]", parameters->max_context_len, script->context_limit);
        return -1;
    }
    if (parameters->max_context_len <= 0) {
        LINE("E", "max_context[%d] must be positive", parameters->max_context_len);
        return -1;
    }
#if GENERATION >= 2
    RKLLMExtendParam *extend = &parameters->extend_param;
    if (extend->enabled_cpus_num < script->npu_cores) {
        LINE("E", "The number of enabled CPUs must be greater than or equal to the number of NPU cores.");
        return -1;
    }
#endif
#if GENERATION >= 3
    if (extend->n_batch > 1 || extend->use_cross_attn) {
        LINE("E", "simulation: neither batches nor cross attention are simulated");
        return -1;
    }
#endif
    if (script->npu_memory)
        return npu_memory_exhausted(script);
    if (script->init_code) {
        LINE("E", "rkllm init failed");
        return (int)script->init_code;
    }
    sleep_ms(script->init_ms);
#if GENERATION >= 2
    char cpus[64] = "";
    for (unsigned i = 0, length = 0; i < 8; i++)
        if (extend->enabled_cpus_mask >> i & 1)
            length += (unsigned)snprintf(cpus + length, sizeof cpus - length, "%s%u", length ? ", " : "", i);
    LINE("I", "Enabled cpus: [%s]", cpus);
    LINE("I", "Enabled cpus num: %d", extend->enabled_cpus_num);
#endif
    return 0;
}

static void release(struct model *model)
{
    sequence_free(&model->kv);
    sequence_free(&model->cached);
    free((char *)model->parameters.model_path);
#if GENERATION <= 3
    free((char *)model->parameters.img_start);
    free((char *)model->parameters.img_end);
    free((char *)model->parameters.img_content);
#endif
    free(model->system);
    free(model->prefix);
    free(model->postfix);
    free(model->tools);
    free(model);
}

#if GENERATION >= 4
EXPORT int rkllm_init(LLMHandle *handle, RKLLMParam *parameters, RKLLMCallback *callback)
#else
EXPORT int rkllm_init(LLMHandle *handle, RKLLMParam *parameters, LLMResultCallback callback)
#endif
{
    long long began = now_ns();
    struct model *model = calloc(1, sizeof *model);
    if (!handle || !parameters || !callback || !model) {
        free(model);
        return -1;
    }
    model->parameters = *parameters;
    model->parameters.model_path = copy(parameters->model_path);
#if GENERATION <= 3
    model->parameters.img_start = copy(parameters->img_start);
    model->parameters.img_end = copy(parameters->img_end);
    model->parameters.img_content = copy(parameters->img_content);
#endif
#if GENERATION >= 4
    model->callback = callback->result_callback;
    model->default_userdata = callback->result_userdata;
#else
    model->callback = callback;
#endif
    model->system = copy("");
    model->prefix = copy("");
    model->postfix = copy("");
    model->tools = copy("");
    int code = load(model);
    if (code || model->script.init_quiet_failure) {
        if (!model->script.init_quiet_failure) {
            release(model);
            return code;
        }
        if (!code)
            LINE("E", "failed to load model");
        model->broken = true; /* as the 1.1 line: an E line, and 0 */
    }
    model->init_ns = now_ns() - began;
    *handle = model;
    return 0;
}

/* The script may change between two calls. */
static struct model *with_script(LLMHandle handle)
{
    struct model *model = handle;
    if (model && !atomic_load(&model->busy)) {
        model->script = model->about;
        script_read_environment(&model->script);
    }
    return model;
}

EXPORT int rkllm_destroy(LLMHandle handle)
{
    struct model *model = with_script(handle);
    if (!model || atomic_load(&model->busy))
        return -1;
    int code = (int)model->script.destroy_code;
    release(model);
    return code;
}

/* ---- run ---- */

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

static bool add_system(struct model *model, struct sequence *prompt)
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
static bool add_prompt(struct model *model, const struct request *request, struct sequence *prompt)
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

/* Numbers that follow from every token up to each, and are never 0. */
static float *numbers_of(struct model *model, const struct sequence *prompt, size_t width)
{
    float *numbers = malloc(prompt->count * width * sizeof *numbers);
    uint64_t state = model->hash;
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
static size_t answer(struct model *model, const struct request *request, struct piece *pieces, size_t most)
{
    const struct script *script = &model->script;
    char line[PIECE_BYTES + 64];
    size_t count = 0, seen = model->kv.count;
    bool split = script->split_utf8, endless = !strcmp(script->reply, "sentence");
    snprintf(line, sizeof line, "[simulated runtime %s %s]", version, GENERATION_NAME);
    count = add_piece(pieces, count, most, line, false);
    if (request->adapter) {
        snprintf(line, sizeof line, " [adapter %.64s]", request->adapter);
        count = add_piece(pieces, count, most, line, false);
    }
    if (!strcmp(script->reply, "echo")) {
        snprintf(line, sizeof line, " [top_k=%d top_p=%.3f temperature=%.3f]", request->top_k, request->top_p, request->temperature);
        count = add_piece(pieces, count, most, line, false);
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
    bool fresh = !request->keep_history || !model->kv.count;
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
    struct request request = request_of(input, infer, &model->parameters);
    int code = (int)model->script.run_code;
    if (code)
        LINE("E", "rkllm run failed");
    else
        code = run(model, &request, userdata);
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

/* ---- adapters, caches, templates ---- */

EXPORT int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter *adapter)
{
    struct model *model = with_script(handle);
    struct script about;
    unsigned long long hash;
    script_defaults(&about);
    if (!model || !adapter || !adapter->lora_adapter_name || !adapter->lora_adapter_path)
        return -1;
    if (model->script.lora_code)
        return (int)model->script.lora_code;
    enum model_kind kind = script_read_model(&about, adapter->lora_adapter_path, &hash);
    if (kind != MODEL_TEST && kind != MODEL_PLACEHOLDER) {
        LINE("E", "invalid rknn llm lora magic: %s", adapter->lora_adapter_path);
        return -1;
    }
    if (model->adapter_count == ADAPTERS_MAX || strlen(adapter->lora_adapter_name) >= sizeof model->adapters[0])
        return -1;
    strcpy(model->adapters[model->adapter_count++], adapter->lora_adapter_name);
    LINE("I", "load lora adapter %s from %s, scale %.2f", adapter->lora_adapter_name, adapter->lora_adapter_path, adapter->scale);
    return 0;
}

EXPORT int rkllm_load_prompt_cache(LLMHandle handle, const char *path)
{
    struct model *model = with_script(handle);
    if (!model || !path)
        return -1;
    if (model->script.load_cache_code)
        return (int)model->script.load_cache_code;
    const char *wrong = cache_load(path, model->hash, &model->cached);
    if (wrong) {
        LINE("E", "prompt cache %s %s", path, wrong);
        return -1;
    }
    LINE("I", "prompt cache %s loaded: %zu tokens", path, model->cached.count);
    return 0;
}

EXPORT int rkllm_release_prompt_cache(LLMHandle handle)
{
    struct model *model = with_script(handle);
    if (!model)
        return -1;
    model->cached.count = 0;
    return (int)model->script.release_cache_code;
}

#if GENERATION >= 2
static int clear(LLMHandle handle, int keep_system)
{
    struct model *model = with_script(handle);
    if (!model)
        return -1;
    if (model->script.clear_code)
        return (int)model->script.clear_code;
    if (!keep_system)
        model->system_tokens = 0;
    if (model->kv.count > model->system_tokens)
        model->kv.count = model->system_tokens;
    return 0;
}

static void replace(char **text, const char *with)
{
    free(*text);
    *text = copy(with);
}

EXPORT int rkllm_set_chat_template(LLMHandle handle, const char *system, const char *prefix, const char *postfix)
{
    struct model *model = with_script(handle);
    if (!model)
        return -1;
    if (model->script.template_code)
        return (int)model->script.template_code;
    LINE("W", "Calling rkllm_set_chat_template will disable the internal automatic chat template parsing, including enable_thinking.");
    LINE("I", "reset chat template:");
    LINE("I", "system_prompt: %s", system ? system : "");
    LINE("I", "prompt_prefix: %s", prefix ? prefix : "");
    LINE("I", "prompt_postfix: %s", postfix ? postfix : "");
    replace(&model->system, system);
    replace(&model->prefix, prefix);
    replace(&model->postfix, postfix);
    model->custom_template = true;
    return 0;
}
#endif

#if GENERATION == 2
EXPORT int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt)
{
    return clear(handle, keep_system_prompt);
}
#endif

#if GENERATION >= 3
EXPORT int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt, int *start_pos, int *end_pos)
{
    if (start_pos || end_pos) {
        LINE("E", "simulation: clearing a range is not simulated");
        return -1;
    }
    return clear(handle, keep_system_prompt);
}

EXPORT int rkllm_get_kv_cache_size(LLMHandle handle, int *sizes)
{
    struct model *model = with_script(handle);
    if (!model || !sizes)
        return -1;
    sizes[0] = (int)model->kv.count;
    return (int)model->script.size_code;
}

EXPORT int rkllm_set_function_tools(LLMHandle handle, const char *system, const char *tools, const char *tool_response)
{
    struct model *model = with_script(handle);
    if (!model)
        return -1;
    if (model->script.tools_code)
        return (int)model->script.tools_code;
    replace(&model->system, system);
    free(model->tools);
    if (asprintf(&model->tools, " <|tools|> %s %s", tools ? tools : "", tool_response ? tool_response : "") < 0)
        model->tools = copy("");
    return 0;
}

EXPORT int rkllm_set_cross_attn_params(LLMHandle handle, RKLLMCrossAttnParam *parameters)
{
    (void)handle, (void)parameters;
    LINE("E", "simulation: cross attention is not simulated");
    return -1;
}
#endif
