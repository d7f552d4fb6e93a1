/* What every generation of the interface shares. Names and order of fields are the interface; the words are ours.
 * Source of the layouts: rkllm.h at the release tags of https://github.com/airockchip/rknn-llm. */
#ifndef RKLLM_COMMON_H
#define RKLLM_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void *LLMHandle;

typedef enum {
    RKLLM_RUN_NORMAL = 0,
    RKLLM_RUN_WAITING = 1, /* an incomplete character */
    RKLLM_RUN_FINISH = 2,
    RKLLM_RUN_ERROR = 3,
    RKLLM_RUN_GET_LAST_HIDDEN_LAYER = 4, /* G1 only */
} LLMCallState;

typedef enum {
    RKLLM_INPUT_PROMPT = 0,
    RKLLM_INPUT_TOKEN = 1,
    RKLLM_INPUT_EMBED = 2,
    RKLLM_INPUT_MULTIMODAL = 3,
} RKLLMInputType;

typedef enum {
    RKLLM_INFER_GENERATE = 0,
    RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1,
    RKLLM_INFER_GET_LOGITS = 2, /* from G2 */
} RKLLMInferMode;

typedef struct {
    const char *lora_adapter_path;
    const char *lora_adapter_name;
    float scale;
} RKLLMLoraAdapter;

typedef struct {
    float *embed; /* n_tokens rows as wide as the model */
    size_t n_tokens;
} RKLLMEmbedInput;

typedef struct {
    int32_t *input_ids;
    size_t n_tokens;
} RKLLMTokenInput;

typedef struct {
    const char *lora_adapter_name;
} RKLLMLoraParam;

typedef struct {
    int save_prompt_cache;
    const char *prompt_cache_path;
} RKLLMPromptCacheParam;

typedef struct {
    const float *hidden_states;
    int embd_size;
    int num_tokens;
} RKLLMResultLastHiddenLayer;

#endif
