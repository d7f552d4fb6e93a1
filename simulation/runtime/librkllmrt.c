/* A runtime library without an NPU: the vendor's interface and log lines, the speed of a row of the vendor's table, the language of none.
 *
 * Built once per generation by build.py. Every answer begins with `[simulated runtime VERSION GENERATION]`. What a model file says about
 * itself and what a script asks for is in script.h; what a request can see of earlier ones, in context.h. Where no public page says how the
 * real library behaves, this one does what is worst for its caller: the KV cache of a finished run stays until somebody clears it or a run
 * without history begins. */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
struct model *with_script(LLMHandle handle)
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
    if (model->script.clear_ignored)
        return 0;
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
    if (!model->script.tools_stay || (system && *system))
        replace(&model->system, system);
    if (!tools || !*tools) {
        if (!model->script.tools_stay)
            replace(&model->tools, "");
        return 0;
    }
    free(model->tools);
    if (asprintf(&model->tools, " <|tools|> %s %s", tools, tool_response ? tool_response : "") < 0)
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
