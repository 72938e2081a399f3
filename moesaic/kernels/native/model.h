// A model and a pass as the caller describes them: moesaic/infer/native.py writes these structures,
// field by field.
#pragma once

#include "dot.h"

namespace moesaic {

struct Layer {
  const float *input_norm, *post_norm, *query_norm, *latent_norm;
  Matrix query, query_up;  // query_up: where queries have a latent
  Matrix key, value;       // latent attention: kv_a_proj_with_mqa and kv_b_proj
  Matrix output;
  Matrix gate, up, down;   // the dense feed-forward, or the shared experts
  Matrix router, experts_in, experts_out;  // stacks, one expert after the other
  const float* bias;       // choice bias, or null
  const uint8_t* allowed;  // 1 for experts that may be chosen, or null
  const int32_t* slots;    // place of each expert in the stacks, or null
  uint8_t* cache;
};

// Makes experts of a layer be there, in the places that Layer::slots then tells; those of the next
// layer, a guess, may be on their way afterwards. Returns 0, or anything else to end the pass.
using Need = int32_t (*)(int32_t layer, const int32_t* experts, int32_t count,
                         const int32_t* guessed, int32_t guesses);

struct Model {
  const Layer* layers;
  const float *cosines, *sines;  // [positions, rotated / 2]
  Matrix embedding, head;  // embedding: of floats
  int32_t hidden, heads, key_heads, head_width;  // head_width: of attention without a latent
  int32_t unrotated, rotated, value_width, latent;
  int32_t is_latent, is_interleaved;
  int32_t experts, chosen, groups, kept_groups, is_sigmoid, normalises;
  int32_t cache_format, block;  // block: positions in one
  float gate_scale, softmax_scale, norm_eps, latent_eps;
  Need need;  // null where all experts are there
};

struct Pass {
  const int32_t* ids;        // [count], tokens whose embeddings are the input; null: it is there
  const int32_t* positions;  // [count]
  const int32_t* sequences;  // [count], each token's row of the tables
  const int32_t* tables;     // [sequences, table_width], blocks of the cache
  const int32_t* wanted;     // [n_logits], tokens whose logits are asked for
  const float* last_norm;    // null: the output of the last layer is left as it is
  float* stream;             // [count, hidden]: the input of the first layer, then the normed output
  float* logits;             // [n_logits, vocabulary]
  int32_t* chosen;           // [layers of the pass, count, chosen], the experts of tokens, or null
  int32_t count, n_logits, table_width, first_layer, last_layer, threads;
};

constexpr int kMost = 256;  // tokens in a pass

}  // namespace moesaic
