// One pass of a few tokens through the layers of a model: every weight that is needed is read once.
//
// The numbers are those of `moesaic.model`, with sums and the stream between the layers in float32.
// Each part of a layer is divided among the threads, which meet before the next. All memory that
// outlives a call is the caller's.
#include <omp.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "model.h"
#include "route.h"
#include "team.h"

namespace moesaic {
namespace {

using Inputs = std::vector<const Activation*>;

// Memory of one pass.
class Room {
 public:
  float* floats(int64_t count) {
    const size_t whole = (size_t(count) * sizeof(float) / kLine + 1) * kLine;
    memory_.emplace_back(static_cast<float*>(std::aligned_alloc(kLine, whole)), std::free);
    if (!memory_.back()) throw std::bad_alloc();
    return memory_.back().get();
  }
  std::vector<Activation> activations(int64_t count, int64_t width) {
    const int64_t each = Activation::floats(width);
    std::vector<Activation> found;
    float* memory = floats(count * each);
    for (int64_t i = 0; i < count; i++) found.push_back(Activation::at(memory + i * each, width));
    return found;
  }

 private:
  static constexpr size_t kLine = 64;  // a vector that crosses two lines is read twice
  std::vector<std::unique_ptr<float, decltype(&std::free)>> memory_;
};

Inputs pointers(const std::vector<Activation>& each) {
  Inputs found;
  for (const Activation& one : each) found.push_back(&one);
  return found;
}

float silu(float x) { return x / (1.0f + exponential(-x)); }

void norm(const float* x, const float* weight, int64_t width, float eps, float* out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; i++) sum += x[i] * x[i];
  float scale = 1.0f / std::sqrt(sum / float(width) + eps);
  for (int64_t i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

// out[i · step + r] is row r of the weight times input i, added to what is there or put there.
void multiply(const Matrix& weight, const Inputs& x, const Member& me, float* out, int64_t step,
              bool add = false) {
  float found[kMost * kRows];
  for (int64_t r = me.begin(weight.rows); r < me.end(weight.rows); r += kRows) {
    const int rows = me.rows(weight.rows, r);
    fetch_ahead(weight, r, me.end(weight.rows));
    dot_all(weight, r, rows, x.data(), int(x.size()), found);
    for (size_t i = 0; i < x.size(); i++)
      for (int j = 0; j < rows; j++) {
        float& place = out[int64_t(i) * step + r + j];
        place = add ? place + found[i * kRows + j] : found[i * kRows + j];
      }
  }
}

// A token and one of its experts; pairs of one expert lie together, in the order of the experts.
struct Pair {
  int32_t expert, slot, token;
  float weight;
};

class Step {
 public:
  Step(const Model& model, const Pass& pass)
      : m(model), p(pass), shape_(attention_shape(model)) {
    const int64_t n = p.count;
    int64_t inner = 0, routed = 0, latent = 0;
    for (int i = p.first_layer; i < p.last_layer; i++) {
      const Layer& layer = m.layers[i];
      inner = std::max<int64_t>(inner, layer.down.rows ? layer.down.width : 0);
      routed = std::max<int64_t>(routed, layer.experts_out.rows ? layer.experts_out.width : 0);
      latent = std::max<int64_t>(latent, layer.query_up.rows ? layer.query_up.width : 0);
    }
    query_width_ = m.is_latent ? m.unrotated + m.rotated : m.head_width;
    key_width_ = m.is_latent ? m.latent + m.rotated : m.key_heads * m.head_width;
    row_width_ = m.is_latent ? key_width_ : 2 * key_width_;
    out_width_ = m.heads * (m.is_latent ? m.value_width : m.head_width);
    input_ = room_.activations(n, m.hidden);
    latent_ = room_.activations(latent ? n : 0, latent);
    summed_ = room_.activations(m.is_latent ? n * m.heads : 0, m.latent);
    attended_ = room_.activations(n, out_width_);
    inner_ = room_.activations(inner ? n : 0, inner);
    routed_ = room_.activations(routed ? n * m.chosen : 0, routed);
    inputs_ = pointers(input_);
    low_ = room_.floats(n * latent);
    query_ = room_.floats(n * m.heads * query_width_);
    key_ = room_.floats(n * key_width_);
    value_ = room_.floats(n * key_width_);
    turned_ = room_.floats(n * m.heads * shape_.key_width);
    states_ = room_.floats(p.threads * n * m.heads * shape_.state());
    scores_ = room_.floats(n * m.experts);
    chosen_.resize(size_t(n * m.chosen));
    if (m.need) {
      ahead_ = room_.activations(n, m.hidden);
      guessed_.resize(chosen_.size());
    }
  }

  // Whether the experts could be had.
  bool is_whole() const { return !failed_; }

  // What every thread does; the runtime may give fewer of them than were asked for.
  void run(int index, int threads) {
    if (index == 0) threads_ = threads, barrier_.expect(threads);
#pragma omp barrier
    const Member me{index, threads, &barrier_};
    if (p.ids) embed(me);
    for (int i = p.first_layer; i < p.last_layer; i++) {
      attend_in(m.layers[i], me);
      feed_forward(i, me);
      if (failed_) return;
    }
    if (p.last_norm) finish(me);
  }

 private:
  static AttentionShape attention_shape(const Model& m) {
    if (m.is_latent)
      return {m.heads, m.heads, m.latent + m.rotated, m.latent, 0, 0, 0};
    int32_t keys = m.key_heads * m.head_width;
    return {m.heads, m.heads / m.key_heads, m.head_width, m.head_width, m.head_width, keys, m.head_width};
  }

  template <typename F>
  void share(int64_t count, const Member& me, F&& work) {
    for (int64_t i = me.begin(count); i < me.end(count); i++) work(i);
    me.meet();
  }

  // The thread that norms a token does this for it, so they need not meet.
  void embed(const Member& me) {
    const float one = 1.0f;
    for (int64_t t = me.begin(p.count); t < me.end(p.count); t++) {
      float* x = p.stream + t * m.hidden;
      std::fill(x, x + m.hidden, 0.0f);
      add_rows(m.embedding, p.ids[t], 1, &one, x);
    }
  }

  // ---- attention ----

  void attend_in(const Layer& layer, const Member& me) {
    take_normed(layer.input_norm, me, {&layer.query, &layer.key, m.is_latent ? nullptr : &layer.value});
    multiply(layer.key, inputs_, me, key_, key_width_);
    if (!m.is_latent) multiply(layer.value, inputs_, me, value_, key_width_);
    const int64_t queries = m.heads * query_width_;
    if (layer.query_up.rows) {
      const int64_t width = layer.query_up.width;
      multiply(layer.query, inputs_, me, low_, width);
      me.meet();
      share(p.count, me, [&](int64_t t) {
        norm(low_ + t * width, layer.query_norm, width, m.latent_eps, latent_[t].values);
        latent_[t].prepare(int32_t(width), layer.query_up.format);
      });
      multiply(layer.query_up, pointers(latent_), me, query_, queries);
    } else {
      multiply(layer.query, inputs_, me, query_, queries);
    }
    me.meet();
    for (int64_t t = me.begin(p.count); t < me.end(p.count); t++) remember(layer, t);
    share(p.count * m.heads, me, [&](int64_t i) { turn_query(layer, i); });
    if (m.cache_format == kBFloat16) {
      look<uint16_t>(layer, me);
    } else {
      look<float>(layer, me);
    }
    me.meet();
    share(p.count * m.heads, me, [&](int64_t i) { gather(layer, i); });
    share(p.count, me, [&](int64_t t) { attended_[t].prepare(int32_t(out_width_), layer.output.format); });
    multiply(layer.output, pointers(attended_), me, p.stream, m.hidden, true);
    me.meet();
  }

  // Turn the pairs of a vector by the angles of a position; they come out half the width apart.
  void turn(const float* x, int64_t position, float* out) const {
    const int half = m.rotated / 2;
    const float *cosine = m.cosines + position * half, *sine = m.sines + position * half;
    for (int i = 0; i < half; i++) {
      float first = m.is_interleaved ? x[2 * i] : x[i];
      float second = m.is_interleaved ? x[2 * i + 1] : x[half + i];
      out[i] = first * cosine[i] - second * sine[i];
      out[half + i] = second * cosine[i] + first * sine[i];
    }
  }

  // Put a token's keys and values, or its latent, into the cache.
  void remember(const Layer& layer, int64_t t) {
    const float* key = key_ + t * key_width_;
    std::vector<float> row(static_cast<size_t>(row_width_));
    const int64_t position = p.positions[t];
    if (m.is_latent) {
      norm(key, layer.latent_norm, m.latent, m.latent_eps, row.data());
      turn(key + m.latent, position, row.data() + m.latent);
    } else {
      for (int h = 0; h < m.key_heads; h++)
        turn(key + h * m.head_width, position, row.data() + h * m.head_width);
      std::copy(value_ + t * key_width_, value_ + (t + 1) * key_width_, row.data() + key_width_);
    }
    const int32_t* table = p.tables + int64_t(p.sequences[t]) * p.table_width;
    const int64_t place = int64_t(table[position / m.block]) * m.block + position % m.block;
    store(row.data(), row_width_, layer.cache, place * row_width_);
  }

  void store(const float* from, int64_t width, void* to, int64_t start) const {
    if (m.cache_format == kBFloat16) {
      uint16_t* halves = static_cast<uint16_t*>(to) + start;
      for (int64_t i = 0; i < width; i++) halves[i] = narrow(from[i]);
    } else {
      std::copy(from, from + width, static_cast<float*>(to) + start);
    }
  }

  // Bring one query into the space of what is cached, scaled: head h of token t is i = t · heads + h.
  void turn_query(const Layer& layer, int64_t i) {
    const float* query = query_ + i * query_width_;
    const int64_t position = p.positions[i / m.heads], head = i % m.heads;
    std::vector<float> found(static_cast<size_t>(shape_.key_width), 0.0f);
    if (m.is_latent) {
      const int64_t first = head * (m.unrotated + m.value_width);
      add_rows(layer.value, first, m.unrotated, query, found.data());
      turn(query + m.unrotated, position, found.data() + m.latent);
    } else {
      turn(query, position, found.data());
    }
    for (float& one : found) one *= m.softmax_scale;
    store(found.data(), shape_.key_width, turned_, i * shape_.key_width);
  }

  template <typename T>
  void look(const Layer& layer, const Member& me) {
    for (int64_t t = 0; t < p.count; t++) {
      const int32_t* table = p.tables + int64_t(p.sequences[t]) * p.table_width;
      Positions<T> cached{reinterpret_cast<const T*>(layer.cache), table, m.block, row_width_};
      const T* query = reinterpret_cast<const T*>(turned_) + t * m.heads * shape_.key_width;
      const int64_t seen = p.positions[t] + 1;
      attend<T>(shape_, query, cached, me.begin(seen), me.end(seen), state(me.index, t * m.heads));
    }
  }

  float* state(int64_t thread, int64_t i) {
    return states_ + (thread * p.count * m.heads + i) * shape_.state();
  }

  // Join what the threads found for one head, and bring it out of the latent space.
  void gather(const Layer& layer, int64_t i) {
    const int64_t head = i % m.heads, step = p.count * m.heads * shape_.state();
    float* out = attended_[i / m.heads].values;
    if (!m.is_latent) {
      join(shape_, state(0, i), step, threads_, out + head * m.head_width);
      return;
    }
    Activation& summed = summed_[i];
    join(shape_, state(0, i), step, threads_, summed.values);
    summed.prepare(m.latent, layer.value.format);
    const Activation* only = &summed;
    const int64_t first = head * (m.unrotated + m.value_width) + m.unrotated;
    for (int u = 0; u < m.value_width; u += kRows) {
      const int rows = std::min(kRows, m.value_width - u);
      float found[kRows];
      fetch_ahead(layer.value, first + u, first + m.value_width);
      dot_all(layer.value, first + u, rows, &only, 1, found);
      std::copy(found, found + rows, out + head * m.value_width + u);
    }
  }

  // ---- feed-forward ----

  void feed_forward(int32_t index, const Member& me) {
    const Layer& layer = m.layers[index];
    const bool has_dense = layer.down.rows, has_experts = layer.router.rows;
    take_normed(layer.post_norm, me, {&layer.gate, &layer.up, &layer.experts_in});
    if (has_experts) route(index, me);
    if (failed_) return;
    if (has_dense) enter_dense(layer, me);
    if (has_experts) enter_experts(layer, me);
    me.meet();
    if (has_dense)
      for (int64_t t = me.begin(p.count); t < me.end(p.count); t++)
        inner_[t].prepare(layer.down.width, layer.down.format);
    if (has_experts)
      for (int64_t i = me.begin(pairs_.size()); i < me.end(pairs_.size()); i++)
        routed_[i].prepare(layer.experts_out.width, layer.experts_out.format);
    me.meet();
    if (has_dense) multiply(layer.down, pointers(inner_), me, p.stream, m.hidden, true);
    if (has_experts) leave_experts(layer, me);
    me.meet();
  }

  void enter_dense(const Layer& layer, const Member& me) {
    float gates[kMost * kRows], ups[kMost * kRows];
    const int64_t width = layer.down.width;
    for (int64_t r = me.begin(width); r < me.end(width); r += kRows) {
      const int rows = me.rows(width, r);
      fetch_ahead(layer.gate, r, me.end(width));
      fetch_ahead(layer.up, r, me.end(width));
      dot_all(layer.gate, r, rows, inputs_.data(), p.count, gates);
      dot_all(layer.up, r, rows, inputs_.data(), p.count, ups);
      for (int t = 0; t < p.count; t++)
        for (int j = 0, i = t * kRows; j < rows; j++, i++)
          inner_[t].values[r + j] = silu(gates[i]) * ups[i];
    }
  }

  void route(int32_t index, const Member& me) {
    const Layer& layer = m.layers[index];
    multiply(layer.router, inputs_, me, scores_, m.experts);
    me.meet();
    share(p.count, me, [&](int64_t t) {
      const Choice* found = chosen_.data() + t * m.chosen;
      choose(m, layer, scores_ + t * m.experts, chosen_.data() + t * m.chosen);
      int32_t* told = p.chosen + ((index - p.first_layer) * int64_t(p.count) + t) * m.chosen;
      for (int32_t k = 0; p.chosen && k < m.chosen; k++) told[k] = found[k].expert;
    });
    const bool guesses = m.need && index + 1 < p.last_layer && m.layers[index + 1].router.rows;
    if (guesses) guess(m.layers[index + 1], me);
    if (me.index == 0) {
      failed_ = m.need && ask(index, guesses);
      if (!failed_) sort_pairs(layer);
    }
    me.meet();
  }

  // What the next layer's router says of the stream as it is before this layer's experts.
  void guess(const Layer& next, const Member& me) {
    share(p.count, me, [&](int64_t t) {
      norm(p.stream + t * m.hidden, next.post_norm, m.hidden, m.norm_eps, ahead_[t].values);
      ahead_[t].prepare(m.hidden, next.router.format);
    });
    multiply(next.router, pointers(ahead_), me, scores_, m.experts);
    me.meet();
    share(p.count, me, [&](int64_t t) {
      choose(m, next, scores_ + t * m.experts, guessed_.data() + t * m.chosen);
    });
  }

  bool ask(int32_t index, bool guesses) const {
    const std::vector<int32_t> chosen = ids(chosen_);
    const std::vector<int32_t> guessed = guesses ? ids(guessed_) : std::vector<int32_t>();
    return m.need(index, chosen.data(), int32_t(chosen.size()), guessed.data(), int32_t(guessed.size()));
  }

  static std::vector<int32_t> ids(const std::vector<Choice>& choices) {
    std::vector<int32_t> found;
    for (const Choice& one : choices) found.push_back(one.expert);
    return found;
  }

  void sort_pairs(const Layer& layer) {
    pairs_.clear();
    for (int32_t i = 0; i < int32_t(chosen_.size()); i++) {
      const int32_t expert = chosen_[i].expert, slot = layer.slots ? layer.slots[expert] : expert;
      pairs_.push_back({expert, slot, i / m.chosen, chosen_[i].weight});
    }
    std::stable_sort(pairs_.begin(), pairs_.end(),
                     [](const Pair& a, const Pair& b) { return a.expert < b.expert; });
    runs_.assign(1, 0);
    for (size_t i = 1; i <= pairs_.size(); i++)
      if (i == pairs_.size() || pairs_[i].expert != pairs_[i - 1].expert) runs_.push_back(i);
  }

  void enter_experts(const Layer& layer, const Member& me) {
    const int64_t width = layer.experts_out.width;
    const Activation* x[kMost];
    float gates[kMost * kRows], ups[kMost * kRows];
    for (size_t run = 0; run + 1 < runs_.size(); run++) {
      const size_t begin = runs_[run], count = runs_[run + 1] - begin;
      for (size_t i = 0; i < count; i++) x[i] = inputs_[pairs_[begin + i].token];
      const int64_t base = int64_t(pairs_[begin].slot) * 2 * width;
      for (int64_t r = me.begin(width); r < me.end(width); r += kRows) {
        const int rows = me.rows(width, r);
        fetch_ahead(layer.experts_in, base + r, base + me.end(width));
        fetch_ahead(layer.experts_in, base + width + r, base + width + me.end(width));
        dot_all(layer.experts_in, base + r, rows, x, int(count), gates);
        dot_all(layer.experts_in, base + width + r, rows, x, int(count), ups);
        for (size_t i = 0; i < count; i++)
          for (int j = 0; j < rows; j++)
            routed_[begin + i].values[r + j] =
                silu(gates[i * kRows + j]) * ups[i * kRows + j] * pairs_[begin + i].weight;
      }
    }
  }

  void leave_experts(const Layer& layer, const Member& me) {
    const Activation* x[kMost];
    float found[kMost * kRows];
    for (size_t run = 0; run + 1 < runs_.size(); run++) {
      const size_t begin = runs_[run], count = runs_[run + 1] - begin;
      for (size_t i = 0; i < count; i++) x[i] = &routed_[begin + i];
      const int64_t base = int64_t(pairs_[begin].slot) * m.hidden;
      for (int64_t r = me.begin(m.hidden); r < me.end(m.hidden); r += kRows) {
        const int rows = me.rows(m.hidden, r);
        fetch_ahead(layer.experts_out, base + r, base + me.end(m.hidden));
        dot_all(layer.experts_out, base + r, rows, x, int(count), found);
        for (size_t i = 0; i < count; i++)
          for (int j = 0; j < rows; j++)
            p.stream[pairs_[begin + i].token * int64_t(m.hidden) + r + j] += found[i * kRows + j];
      }
    }
  }

  // ---- the stream ----

  // The normed stream, in the forms that some weights of a layer, where it has them, are
  // multiplied with.
  void take_normed(const float* weight, const Member& me, std::initializer_list<const Matrix*> by) {
    bool formats[kFormats] = {};
    for (const Matrix* one : by)
      if (one && one->rows) formats[one->format] = true;
    share(p.count, me, [&](int64_t t) {
      norm(p.stream + t * m.hidden, weight, m.hidden, m.norm_eps, input_[t].values);
      for (int32_t format = 0; format < kFormats; format++)
        if (formats[format]) input_[t].prepare(m.hidden, format);
    });
  }

  void finish(const Member& me) {
    share(p.count, me, [&](int64_t t) {
      float* x = p.stream + t * m.hidden;
      norm(x, p.last_norm, m.hidden, m.norm_eps, x);
      std::copy(x, x + m.hidden, input_[t].values);
      input_[t].prepare(m.hidden, m.head.format);
    });
    Inputs asked;
    for (int i = 0; i < p.n_logits; i++) asked.push_back(inputs_[p.wanted[i]]);
    if (!asked.empty()) multiply(m.head, asked, me, p.logits, m.head.rows);
  }

  const Model& m;
  const Pass& p;
  Barrier barrier_;
  int threads_ = 1;
  bool failed_ = false;
  const AttentionShape shape_;
  Room room_;
  int64_t query_width_, key_width_, row_width_, out_width_;
  std::vector<Activation> input_, latent_, summed_, attended_, inner_, routed_, ahead_;
  Inputs inputs_;
  float *low_, *query_, *key_, *value_, *turned_, *states_, *scores_;
  std::vector<Choice> chosen_, guessed_;
  std::vector<Pair> pairs_;
  std::vector<size_t> runs_;  // where pairs of another expert begin, and the end
};

}  // namespace
}  // namespace moesaic

extern "C" {

// Sizes of the structures, so that the caller can see that it writes the same ones.
int64_t moesaic_size_of_layer() { return sizeof(moesaic::Layer); }
int64_t moesaic_size_of_model() { return sizeof(moesaic::Model); }
int64_t moesaic_size_of_pass() { return sizeof(moesaic::Pass); }
int64_t moesaic_most_tokens() { return moesaic::kMost; }

// 1 where products use the processor's bfloat16 and 8-bit instructions.
int32_t moesaic_is_vectorised() {
#ifdef MOESAIC_AVX512
  return 1;
#else
  return 0;
#endif
}

// 0, or 1 if experts could not be had, or 2 if there was too little memory to begin.
int32_t moesaic_pass(const moesaic::Model* model, const moesaic::Pass* pass) try {
  moesaic::Step step(*model, *pass);
#pragma omp parallel num_threads(pass->threads)
  { step.run(omp_get_thread_num(), omp_get_num_threads()); }
  return step.is_whole() ? 0 : 1;
} catch (const std::bad_alloc&) {
  return 2;
}
}
