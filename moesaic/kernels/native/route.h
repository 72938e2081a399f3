// The choice of experts, as `moesaic.model.router.Router` makes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention.h"
#include "model.h"

namespace moesaic {

struct Choice {
  int32_t expert;
  float weight;
};

namespace routing {

constexpr float kNever = -std::numeric_limits<float>::infinity();

inline void to_scores(const Model& m, float* logits) {
  if (m.is_sigmoid) {
    for (int e = 0; e < m.experts; e++) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float highest = *std::max_element(logits, logits + m.experts), total = 0.0f;
  for (int e = 0; e < m.experts; e++) total += logits[e] = std::exp(logits[e] - highest);
  for (int e = 0; e < m.experts; e++) logits[e] /= total;
}

// Put the experts outside the best groups below all those inside.
inline void limit_to_groups(const Model& m, bool has_bias, std::vector<float>& scores) {
  int size = m.experts / m.groups;
  std::vector<float> of_group(m.groups);
  for (int g = 0; g < m.groups; g++) {
    float best = kNever, second = kNever;
    for (int e = g * size; e < (g + 1) * size; e++) {
      if (scores[e] > best) {
        second = best, best = scores[e];
      } else {
        second = std::max(second, scores[e]);
      }
    }
    of_group[g] = has_bias && size > 1 ? best + second : best;
  }
  auto [lowest, highest] = std::minmax_element(scores.begin(), scores.end());
  float below = 1.0f + *highest - *lowest;
  std::vector<bool> kept(m.groups, false);
  for (int k = 0; k < m.kept_groups; k++) {
    int best = -1;
    for (int g = 0; g < m.groups; g++)
      if (!kept[g] && (best < 0 || of_group[g] > of_group[best])) best = g;
    kept[best] = true;
  }
  for (int e = 0; e < m.experts; e++)
    if (!kept[e / size]) scores[e] -= below;
}

// Let every score be a number, so that no expert is chosen twice: one that is none comes first, as in
// the framework, and goes on into the sum.
inline void let_all_be_numbers(std::vector<float>& scores) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (float& score : scores) score = std::isnan(score) ? kLargest : std::max(score, -kLargest);
}

}  // namespace routing

// The experts of one token, from the router's logits, which are overwritten.
inline void choose(const Model& m, const Layer& layer, float* logits, Choice* chosen) {
  routing::to_scores(m, logits);
  std::vector<float> ranked(logits, logits + m.experts);
  if (layer.bias)
    for (int e = 0; e < m.experts; e++) ranked[e] += layer.bias[e];
  if (m.groups > 1) routing::limit_to_groups(m, layer.bias, ranked);
  routing::let_all_be_numbers(ranked);
  if (layer.allowed)
    for (int e = 0; e < m.experts; e++)
      if (!layer.allowed[e]) ranked[e] = routing::kNever;
  float total = 0.0f;
  for (int k = 0; k < m.chosen; k++) {
    int best = int(std::max_element(ranked.begin(), ranked.end()) - ranked.begin());
    chosen[k] = {best, logits[best]};
    total += logits[best];
    ranked[best] = routing::kNever;
  }
  for (int k = 0; k < m.chosen; k++) {
    if (m.normalises) chosen[k].weight /= total + 1e-20f;
    chosen[k].weight *= m.gate_scale;
  }
}

}  // namespace moesaic
