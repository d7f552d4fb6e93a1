/* The interface of the generation that is built, and the names by which the rest of the source knows its differences. */
#ifndef GENERATION_H
#define GENERATION_H

#if GENERATION == 1
#include "rkllm_g1.h"
#elif GENERATION == 2
#include "rkllm_g2.h"
#elif GENERATION == 3
#include "rkllm_g3.h"
#elif GENERATION == 4
#include "rkllm_g4.h"
#else
#error "GENERATION must be 1, 2, 3 or 4"
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define GENERATION_NAME "G" TEXT(GENERATION)

/* One request, the same for every generation. */
struct request {
    RKLLMInputType type;
    const char *text; /* of prompts and multimodal prompts */
    const int32_t *ids;
    const float *rows;
    size_t count;     /* ids or rows; rows per image */
    size_t images;
    const char *image_start, *image_end, *image_content;
    const char *role;
    bool thinking;
    RKLLMInferMode mode;
    const char *adapter, *save_cache;
    bool keep_history;
    int max_new_tokens;
    int top_k;
    float top_p, temperature;
    bool penalizes; /* in another way than the model was loaded with */
    float repeat_penalty, frequency_penalty, presence_penalty;
};

static inline struct request request_of(const RKLLMInput *input, const RKLLMInferParam *infer, const RKLLMParam *loaded)
{
    struct request request = {
        .type = input->input_type,
        .images = 1,
        .role = "user",
        .thinking = true,
        .mode = infer->mode,
        .adapter = infer->lora_params ? infer->lora_params->lora_adapter_name : NULL,
        .max_new_tokens = loaded->max_new_tokens,
        .top_k = loaded->top_k,
        .top_p = loaded->top_p,
        .temperature = loaded->temperature,
    };
    if (infer->prompt_cache_params && infer->prompt_cache_params->save_prompt_cache)
        request.save_cache = infer->prompt_cache_params->prompt_cache_path;
#if GENERATION >= 2
    request.keep_history = infer->keep_history != 0;
#endif
#if GENERATION >= 3
    request.role = input->role ? input->role : "user";
    request.thinking = input->enable_thinking;
#endif
#if GENERATION >= 4
    if (infer->sampling_params) {
        request.top_k = infer->sampling_params->top_k;
        request.top_p = infer->sampling_params->top_p;
        request.temperature = infer->sampling_params->temperature;
        request.repeat_penalty = infer->sampling_params->repeat_penalty;
        request.frequency_penalty = infer->sampling_params->frequency_penalty;
        request.presence_penalty = infer->sampling_params->presence_penalty;
        request.penalizes = request.repeat_penalty != loaded->repeat_penalty || request.frequency_penalty != loaded->frequency_penalty ||
                            request.presence_penalty != loaded->presence_penalty;
    }
    if (infer->max_new_tokens)
        request.max_new_tokens = infer->max_new_tokens;
#endif
    switch (input->input_type) {
    case RKLLM_INPUT_PROMPT:
        request.text = input->prompt_input;
        break;
    case RKLLM_INPUT_TOKEN:
        request.ids = input->token_input.input_ids;
        request.count = input->token_input.n_tokens;
        break;
    case RKLLM_INPUT_EMBED:
        request.rows = input->embed_input.embed;
        request.count = input->embed_input.n_tokens;
        break;
    case RKLLM_INPUT_MULTIMODAL:
        request.text = input->multimodal_input.prompt;
#if GENERATION >= 4
        request.rows = input->multimodal_input.image.image_embed;
        request.count = input->multimodal_input.image.n_image_tokens;
        request.images = input->multimodal_input.image.n_image;
        request.image_start = input->multimodal_input.image.image_start;
        request.image_end = input->multimodal_input.image.image_end;
        request.image_content = input->multimodal_input.image.image_content;
#else
        request.rows = input->multimodal_input.image_embed;
        request.count = input->multimodal_input.n_image_tokens;
        request.image_start = loaded->img_start;
        request.image_end = loaded->img_end;
        request.image_content = loaded->img_content;
#if GENERATION == 3 || (GENERATION == 2 && !defined(RKLLM_G2A))
        request.images = input->multimodal_input.n_image;
#endif
#endif
        break;
    }
    return request;
}

#endif
