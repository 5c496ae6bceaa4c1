// The inner loops for channels, included by lines.inl. Numbers of kInputs inputs lie together, whatever the
// instruction set: a place of a channel has kInputs / kLanes registers.
constexpr int64_t kParts = kInputs / kLanes;

inline constexpr double kZeros[kInputs] = {};

// Adds terms to the numbers `first` of Places places from p on: so many sums at once that no addition waits.
template <int64_t Places>
inline void add_terms_at(const Term* terms, int64_t count, const double* from, int64_t p, const double* first,
                         double* sums) {
  Lanes x[Places * kParts];
  for (int64_t i = 0; i < Places * kParts; ++i) x[i] = load<Lanes>(first + p * kInputs + i * kLanes);
  for (int64_t k = 0; k < count; ++k) {
    const int32_t* sources = terms[k].sources + p;
    const double *channel = from + terms[k].from, weight = terms[k].weight;
    const int64_t rise = Places > 1 ? terms[k].rises[p / kInputs] * kInputs : 0;
    if (rise > 0) {
      const double* read = channel + sources[0] * kInputs;
      for (int64_t i = 0; i < Places; ++i, read += rise) {
        for (int64_t v = 0; v < kParts; ++v) {
          x[i * kParts + v] = x[i * kParts + v] + load<Lanes>(read + v * kLanes) * weight;
        }
      }
    } else {
      for (int64_t i = 0; i < Places; ++i) {
        // What lies around the channel is zero, and weights are finite.
        const double* read = sources[i] < 0 ? kZeros : channel + sources[i] * kInputs;
        for (int64_t v = 0; v < kParts; ++v) {
          x[i * kParts + v] = x[i * kParts + v] + load<Lanes>(read + v * kLanes) * weight;
        }
      }
    }
  }
  for (int64_t i = 0; i < Places * kParts; ++i) store<Lanes>(x[i], sums + p * kInputs + i * kLanes);
}

// A group of kInputs places at once fills the registers of AVX-512; with shorter ones, a part of it does.
inline void add_terms(const Term* terms, int64_t count, const double* from, int64_t places,
                      const double* first, double* sums) {
  int64_t p = 0;
  for (; p + kInputs <= places; p += kInputs) {
    for (int64_t q = p; q < p + kInputs; q += kLanes)
      add_terms_at<kLanes>(terms, count, from, q, first, sums);
  }
  for (; p < places; ++p) add_terms_at<1>(terms, count, from, p, first, sums);
}

// The larger of a and b, but NaN if any of them is.
inline Lanes largest_of(const Lanes& a, const Lanes& b) { return b > a ? b : (b == b ? a : b); }

inline void run_stage(const Stage& stage, int64_t row, const double* from, double* to) {
  const int64_t numbers = stage.places * kInputs;
  switch (stage.kind) {
    case StageKind::activation:
      // The usual one apart, so that the compiler takes the choice out of the loop.
      if (stage.activation == Activation::relu) {
        for (int64_t i = 0; i < numbers; i += kLanes) {
          store<Lanes>(larger(Lanes{}, load<Lanes>(from + i)), to + i);
        }
      } else {
        for (int64_t i = 0; i < numbers; i += kLanes) {
          store<Lanes>(activate(load<Lanes>(from + i), stage.activation, stage.number), to + i);
        }
      }
      return;
    case StageKind::affine:
      for (int64_t i = 0; i < numbers; i += kLanes) {
        store<Lanes>(load<Lanes>(from + i) * stage.scale[row] + stage.shift[row], to + i);
      }
      return;
    case StageKind::max_pool:
    case StageKind::mean_pool: {
      const bool is_max = stage.kind == StageKind::max_pool;
      for (int64_t p = 0; p < stage.places; ++p) {
        const int32_t* window = stage.windows + p * stage.width;
        for (int64_t v = 0; v < kParts; ++v) {
          const double* lanes = from + v * kLanes;
          Lanes x = Lanes{} - (is_max ? __builtin_inf() : 0.0);
          for (int64_t k = 0; k < stage.width; ++k) {
            if (window[k] < 0) continue;
            const Lanes read = load<Lanes>(lanes + window[k] * kInputs);
            x = is_max ? largest_of(x, read) : x + read;
          }
          store<Lanes>(is_max ? x : x / stage.number, to + p * kInputs + v * kLanes);
        }
      }
    }
  }
}

// Takes the sums of a channel through the stages after them, for kInputs inputs. sums and spare are two
// memories for as many numbers; `from` may be one of them, and is left alone otherwise.
inline void run_stages(const TailLayer& layer, int64_t row, const double* from, double* sums, double* spare,
                       double* held) {
  if (layer.stage_count == 0) {
    for (int64_t i = 0; i < layer.places * kInputs; i += kLanes)
      store<Lanes>(load<Lanes>(from + i), held + i);
    return;
  }
  for (int64_t s = 0; s < layer.stage_count; ++s) {
    double* const to = s + 1 == layer.stage_count ? held : (from == spare ? sums : spare);
    run_stage(layer.stages[s], row, from, to);
    from = to;
  }
}

void forward_channel(const ChannelSums& of, const ChannelRoom& room, int64_t begin, int64_t end) {
  const TailLayer& layer = *of.layer;
  for (int64_t m = begin; m < end; m += kInputs) {
    const int64_t block = m / kInputs;
    double* pre = of.pre + block * of.pre_block;
    const double bias = layer.bias[of.row];
    for (int64_t i = 0; i < layer.places * kInputs; ++i) pre[i] = bias;
    add_terms(of.terms, of.count, of.inputs + block * of.inputs_block, layer.places, pre, pre);
    run_stages(layer, of.row, pre, room.sums, room.spare, room.held);
    double* held = of.held + block * of.held_layout.block;
    for (int64_t p = 0; p < layer.held_places; ++p) {
      __builtin_memcpy(held + p * of.held_layout.neuron, room.held + p * kInputs, kInputs * sizeof(double));
    }
  }
}

// Computes how a layer's channels change from the changes of the layer before. Returns whether any does.
inline bool move_layer(const Channels& channels, const MovedLayer& moved, const ChannelRoom& room,
                       int64_t block, const double* changes, const char* still, double* to, char* still_to) {
  const TailLayer& layer = *moved.layer;
  bool any_moves = false;
  for (int64_t c = moved.first; c < moved.last; ++c) {
    const MovedChannel& channel = channels.channels[c];
    int64_t count = 0;
    for (int64_t k = channel.first; k < channel.last; ++k) {
      room.terms[count] = channels.terms[k];
      count += !still[channels.terms[k].cause];
    }
    const double* pre = channel.pre + block * moved.pre.block;
    const double* held = channel.held + block * moved.held.block;
    double* out = to + channel.to;
    bool moves = false;
    if (count > 0) {
      add_terms(room.terms, count, changes, layer.places, pre, room.sums);
      run_stages(layer, channel.row, room.sums, room.sums, room.spare, room.held);
      for (int64_t p = 0; p < layer.held_places; ++p) {
        for (int64_t v = 0; v < kInputs; v += kLanes) {
          const Lanes change =
              load<Lanes>(room.held + p * kInputs + v) - load<Lanes>(held + p * moved.held.neuron + v);
          moves |= any(change != Lanes{});
          store<Lanes>(change, out + p * kInputs + v);
        }
      }
    }
    if (!moves) __builtin_memset(out, 0, layer.held_places * kInputs * sizeof(double));
    still_to[c - moved.first] = !moves;
    any_moves |= moves;
  }
  return any_moves;
}

// The losses of kInputs inputs from m on, given what the walked channel holds on them.
inline void losses_of_block(const Channels& channels, const ChannelRoom& room, int64_t m, const double* held,
                            double* losses, double* right) {
  const Downstream& after = *channels.after;
  const int64_t numbers = channels.layer->held_places * kInputs, block = m / kInputs;
  const double* before = channels.held + block * numbers;
  for (int64_t i = 0; i < numbers; i += kLanes) {
    store<Lanes>(load<Lanes>(held + i) - load<Lanes>(before + i), room.changes[0] + i);
  }
  room.still[0][0] = 0;
  int now = 0;
  for (int64_t l = 0; l < channels.layer_count; ++l, now = 1 - now) {
    move_layer(channels, channels.layers[l], room, block, room.changes[now], room.still[now],
               room.changes[1 - now], room.still[1 - now]);
  }
  for (int64_t v = 0; v < kInputs; v += kLanes) {
    store<Lanes>(loss_after<Lanes>(after, m + v, load<Lanes>(held + v), room.changes[now] + v,
                                   room.logits + v, kInputs, right ? right + v : nullptr),
                 losses + v);
  }
}

void channel_losses(const Channels& channels, const ChannelRoom& room, int64_t begin, int64_t end,
                    const Outcome& outcome) {
  for (int64_t m = begin; m < end; m += kInputs) {
    losses_of_block(channels, room, m, outcome.held + m * channels.layer->held_places, outcome.losses + m,
                    outcome.right ? outcome.right + m : nullptr);
  }
}

Verdict attempt_channel(const ChannelTrial& trial, int64_t begin, int64_t end) {
  const Channels& channels = *trial.channels;
  const TailLayer& layer = *channels.layer;
  const Outcome &from = trial.from, &to = trial.to;
  Verdict verdict;
  for (int64_t m = begin; m < end; m += kInputs) {
    const double *before = from.pre + m * layer.places, *held_before = from.held + m * layer.held_places;
    double *pre = to.pre + m * layer.places, *held = to.held + m * layer.held_places;
    const double* input = trial.input + m / kInputs * trial.input_block;
    for (int64_t p = 0; p < layer.places; ++p) {
      for (int64_t v = p * kInputs; v < (p + 1) * kInputs; v += kLanes) {
        Lanes x = load<Lanes>(before + v);
        if (trial.sources[p] >= 0) {
          x = x - load<Lanes>(input + (trial.sources[p] - p) * kInputs + v) * trial.weight;
        }
        store<Lanes>(x, pre + v);
      }
    }
    run_stages(layer, channels.row, pre, trial.room.sums, trial.room.spare, held);
    bool moved = false;
    for (int64_t i = 0; i < layer.held_places * kInputs && !moved; i += kLanes) {
      moved = any(load<Lanes>(held + i) != load<Lanes>(held_before + i));
    }
    if (moved) {
      verdict.moved = true;
      losses_of_block(channels, trial.room, m, held, to.losses + m, to.right ? to.right + m : nullptr);
    } else {
      // The loss is a function of what the channel holds alone.
      __builtin_memcpy(to.losses + m, from.losses + m, kInputs * sizeof(double));
      if (to.right) __builtin_memcpy(to.right + m, from.right + m, kInputs * sizeof(double));
    }
  }
  verdict.loss = sum_of(to.losses, begin, end);
  if (to.right) verdict.right = sum_of(to.right, begin, end);
  return verdict;
}
